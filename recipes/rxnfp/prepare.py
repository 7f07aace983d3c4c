"""Make an ordinary masked-language-model folder of the reaction model in the package rxnfp.

The package carries weights without a model type and a vocabulary without a tokenizer. The model was trained
behind a splitter of SMILES that also broke at punctuation, and knows no token that is split otherwise.

    pip install --no-deps rxnfp==0.1.0
    python recipes/rxnfp/prepare.py rxnfp-mlm
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import BertForMaskedLM, PreTrainedTokenizerFast

import fffconvert as fff

SOURCE = "pkg:rxnfp/bert_pretrained"
SMILES = (
    r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|%[0-9]{2}|[0-9])"
)


def reaction_tokenizer(vocabulary: dict[str, int]) -> PreTrainedTokenizerFast:
    """A tokenizer of reaction SMILES: [CLS], the pieces, [SEP]; pieces that the vocabulary lacks are [UNK].

    Args:
        vocabulary: Token to id.
    """
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SMILES), "removed", invert=True),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_max_length=512,
    )


def prepare(output: Path) -> None:
    """Write the folder: config, weights and tokenizer."""
    loaded = fff.load(SOURCE)
    lines = Path(loaded.source.location, "vocab.txt").read_text(encoding="utf-8").splitlines()
    model = BertForMaskedLM(loaded.model.config)
    missing = model.load_state_dict(loaded.model.state_dict(), strict=False).missing_keys
    if missing:
        raise SystemExit(f"{SOURCE} lacks {', '.join(missing)}; expected rxnfp 0.1.0")
    model.save_pretrained(output)
    reaction_tokenizer({token: index for index, token in enumerate(lines)}).save_pretrained(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="Folder to write.")
    prepare(parser.parse_args().output)
