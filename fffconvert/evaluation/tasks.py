"""The tasks by name: what each reads, what it measures of a model, and the metrics it is judged by."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fffconvert.errors import FFFError
from fffconvert.evaluation import agreement, language, sentence
from fffconvert.evaluation.data import NotThere, Table, find_file, read_table, read_text
from fffconvert.evaluation.glue import EPOCHS, GLUE, Glue, fine_tune
from fffconvert.evaluation.metrics import ACCURACY, PEARSON, SPEARMAN, Metric, Units, perplexity, ratio
from fffconvert.evaluation.subject import Subject
from fffconvert.fit.corpus import read_utf8
from fffconvert.fit.length import longest
from fffconvert.fit.masking import head

WIKITEXT = ("text/wikitext2/wiki.test.raw",)
PSEUDO_SEQUENCES, PSEUDO_LENGTH = 100, 64
"""Sequences of pseudo-perplexity unless limited, and their tokens at most: each costs its square."""

TRAIN_FACTOR = 4
"""Under a limit there are so many times as many rows to train on as to test on."""
AGREEMENT_LENGTH = 128
"""Tokens of a text at most that a model and its teacher are compared on."""


@dataclass(frozen=True)
class Options:
    """What all tasks of one call have in common.

    Attributes:
        data_dir: Folder of local data; None for the hub.
        texts: Text files of the language model tasks; WikiText-2 test if there are none.
        text_columns: Of their rows, those that hold text; empty to find them by their usual names.
        lines: A text of a .txt file is a line; else a paragraph.
        tokenizer: Its template is for chats in them.
        limit: Examples of each task at most (pairs, queries, lines, windows); None for all.
        seeds: Runs of tasks that train, of which the median counts.
        epochs: Passes over the training rows of those tasks.
        seed: Of one such run.
    """

    data_dir: Path | None = None
    texts: tuple[Path, ...] = ()
    text_columns: tuple[str, ...] = ()
    lines: bool = False
    tokenizer: Any = None
    limit: int | None = None
    seeds: int = 1
    epochs: int = EPOCHS
    seed: int = 0


class Sample(NamedTuple):
    """What a model did on a task: its units [n, columns], and facts worth stating."""

    units: Units
    facts: dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: On the command line and in the results.
        metrics: The first is the task's figure, the others stand beside it.
        read: Gives the data and where it came from.
        measure: Runs a model on the data; the second is the teacher, where `beside_teacher` asks for it.
        beside_teacher: The task compares with the teacher, and needs one.
        seeded: The task trains, so that it depends on a seed.
        packages: Optional packages that it needs.
    """

    name: str
    metrics: tuple[Metric, ...]
    read: Callable[[Options], tuple[Any, str]]
    measure: Callable[[Subject, Subject | None, Any, Options], Sample]
    beside_teacher: bool = False
    seeded: bool = False
    packages: tuple[str, ...] = ()


def _similarity(name: str, table: Table) -> Task:
    return Task(
        name,
        (SPEARMAN, PEARSON),
        lambda options: read_table(table, options.data_dir, options.limit),
        lambda subject, _, rows, __: Sample(sentence.similarity(subject.model, subject.tokenizer, rows), {}),
    )


def _pairs(files: tuple[str, ...], hub: str, **more: Any) -> Table:
    return Table(
        files,
        (hub, "", "test"),
        ("sentence1", "sentence2"),
        labels=(0.0, 5.0),
        renamed={"label": "score"},
        **more,
    )


SIMILARITY = {
    "sts-b": _pairs(("glue/stsb/test.labelled", "glue/stsb/test"), "mteb/stsbenchmark-sts"),
    **{
        f"sts{year}": _pairs((f"embed/sts{year}",), f"mteb/sts{year}-sts", where={"split": "test"})
        for year in (12, 13, 14, 15, 16)
    },
    "sick-r": _pairs(("embed/sickr", "embed/sick"), "mteb/sickr-sts"),
}


def _read_cranfield(options: Options) -> tuple[Any, str]:
    """Queries that have relevant documents, all documents, and what is relevant.

    With a limit only the documents judged for the taken queries and the first ones of the collection, ten
    times as many as queries.
    """
    place = ("embed/cranfield/docs", "embed/cranfield/queries", "embed/cranfield/qrels")
    documents, source = read_table(Table(place[:1], None, ("title", "text"), keys=("idx",)), options.data_dir)
    queries, _ = read_table(Table(place[1:2], None, ("text",), keys=("idx",)), options.data_dir)
    rows, _ = read_table(Table(place[2:], None, (), keys=("query", "doc", "rel")), options.data_dir)
    gains = sentence.relevance(rows)
    texts = {row["idx"]: f"{row['title']} {row['text']}".strip() for row in documents}
    asked = {row["idx"]: row["text"] for row in queries if row["idx"] in gains}
    if options.limit is not None:
        asked = dict(list(asked.items())[: options.limit])
        first = set(list(texts)[: 10 * options.limit])
        wanted = first | {document for query in asked for document in gains[query]}
        texts = {key: text for key, text in texts.items() if key in wanted}
    if not asked:
        raise FFFError("the retrieval data has no query with a relevant document; check queries and qrels")
    return (asked, texts, {query: gains[query] for query in asked}), source.rpartition("/")[0]


def _retrieve(subject: Subject, _: Subject | None, data: Any, options: Options) -> Sample:
    queries, documents, judged = data
    units = sentence.retrieval(subject.model, subject.tokenizer, queries, documents, judged)
    return Sample(units, {"documents": len(documents)})


def _probe(name: str, train: Table, test: Table | int | None) -> Task:
    """A linear probe, tested on rows of their own, those from a given one on, or a fifth drawn at random."""

    def read(options: Options) -> tuple[Any, str]:
        limit = options.limit
        if isinstance(test, Table):
            (learnt, _), (asked, source) = (read_table(part, options.data_dir) for part in (train, test))
            parts: tuple[Sequence[Any], Sequence[Any]] = learnt, asked
        else:
            rows, source = read_table(train, options.data_dir)
            parts = sentence.split(rows) if test is None else (rows[:test], rows[test:])
        most = None if limit is None else TRAIN_FACTOR * limit
        return (sentence.some(parts[0], most), sentence.some(parts[1], limit)), source

    return Task(
        name,
        (ACCURACY,),
        read,
        lambda subject, _, data, __: Sample(
            sentence.probe(subject.model, subject.tokenizer, *data), {"train_rows": len(data[0])}
        ),
        packages=("sklearn",),
    )


def _classes(file: str, hub: tuple[str, str, str] | None, count: int) -> Table:
    return Table((f"classify/{file}",), hub, ("text",), labels=tuple(range(count)))


PROBES: dict[str, tuple[Table, Table | int | None]] = {
    "probe-ag-news": (_classes("ag_news/test", ("fancyzhx/ag_news", "", "test"), 4), 6000),
    "probe-imdb": (_classes("imdb/train_1k", None, 2), _classes("imdb/test_1k", None, 2)),
    "probe-mr": (_classes("mr/all", None, 2), None),
    "probe-subj": (_classes("subj/all", None, 2), None),
    "probe-20newsgroups": (
        _classes("20newsgroups/train.subset", None, 20),
        _classes("20newsgroups/test.subset", None, 20),
    ),
}


def _glue(name: str, task: Glue) -> Task:
    def read(options: Options) -> tuple[Any, str]:
        dev, source = read_table(task.dev, options.data_dir, options.limit)
        most = None if options.limit is None else TRAIN_FACTOR * options.limit
        train, _ = read_table(task.train, options.data_dir, most)
        return (train, dev), source

    def run(subject: Subject, _: Subject | None, data: Any, options: Options) -> Sample:
        train, dev = data
        units = fine_tune(
            subject.model, subject.tokenizer, task, train, dev, epochs=options.epochs, seed=options.seed
        )
        return Sample(units, {"train_rows": len(train), "epochs": options.epochs})

    return Task(name, task.metrics, read, run, seeded=True, packages=("accelerate", "sklearn"))


def read_documents(options: Options) -> tuple[tuple[str, ...], str]:
    """The text of the language model tasks: the files named, or WikiText-2 test.

    Raises:
        FFFError: It is not there.
    """
    if options.texts:
        documents = read_text(options.texts, options.text_columns, options.tokenizer, lines=options.lines)
        return documents, ", ".join(path.name for path in options.texts)
    if options.data_dir is not None:
        try:
            path = find_file(options.data_dir, WIKITEXT)
        except NotThere:
            raise NotThere(
                f"data folder {options.data_dir} has no {WIKITEXT[0]}; name text with `text`"
            ) from None
        return (read_utf8(path, "text file"),), path.relative_to(options.data_dir).as_posix()
    hub = ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")
    rows, source = read_table(Table(WIKITEXT, hub, ("text",)), None)
    return ("".join(row["text"] for row in rows),), source


def _masked(subject: Subject, _: Subject | None, documents: Sequence[str], options: Options) -> Sample:
    language.require_head(subject.model, "masked", "mlm")
    mask, special, sequences = masked_input(subject, documents, language.LENGTH, options.limit)
    units = language.masked_loss(subject.model, sequences, mask, special)
    return Sample(units, {"tokens": sum(map(len, sequences)), "masked_tokens": int(units[:, 2].sum())})


def _pseudo(subject: Subject, _: Subject | None, documents: Sequence[str], options: Options) -> Sample:
    language.require_head(subject.model, "masked", "pseudo-perplexity")
    limit = options.limit or PSEUDO_SEQUENCES
    mask, special, sequences = masked_input(subject, documents, PSEUDO_LENGTH, limit)
    units = language.pseudo_perplexity(subject.model, sequences, mask, special)
    return Sample(units, {"tokens": int(units[:, 1].sum())})


def masked_input(
    subject: Subject, documents: Sequence[str], length: int, limit: int | None
) -> tuple[int, list[int], list[list[int]]]:
    """Id of the mask, ids that are never masked, and the lines of text.

    Raises:
        FFFError: The tokenizer has no mask, or the text no tokens.
    """
    tokenizer = subject.tokenizer
    if tokenizer.mask_token_id is None:
        raise FFFError(f"the tokenizer of {subject.name} has no mask token; leave the masked tasks out")
    length = longest(subject.model, tokenizer, length)
    sequences = language.lines(documents, tokenizer, length, limit)
    return tokenizer.mask_token_id, list(tokenizer.all_special_ids), sequences


def causal(
    subject: Subject,
    _: Subject | None,
    documents: Sequence[str],
    options: Options,
    length: int = language.LENGTH,
) -> Sample:
    """Perplexity of documents on windows of a number of tokens, or as many as the model takes.

    Every window begins with what the tokenizer puts before a text, the BOS of most.
    """
    language.require_head(subject.model, "causal", "perplexity")
    text, tokenizer = "\n\n".join(documents), subject.tokenizer
    prefix, ids, offsets = language.begun(tokenizer, text)
    if len(ids) < (1 if prefix else 2):
        raise FFFError(f"the text holds {len(ids)} tokens; expected at least two: give a file with text")
    length = longest(subject.model, tokenizer, length)
    stride = length // 2
    units, end = language.causal_loss(
        subject.model, ids, prefix=prefix, length=length, stride=stride, limit=options.limit
    )
    if offsets is not None:  # special tokens stand for no text
        read = text[: max(stop for _, stop in offsets[:end])]
    else:
        read = tokenizer.decode(ids[:end])
    bits, size = float(units[:, 0].sum()) / math.log(2), max(1, len(read.encode()))
    facts = {"tokens": len(prefix) + end, "bytes": size, "length": length, "stride": stride}
    return Sample(units, {**facts, "bits_per_byte": bits / size, "window_prefix": prefix})


def _embeddings(subject: Subject, teacher: Subject | None, documents: Any, options: Options) -> Sample:
    assert teacher is not None
    length = longest(subject.model, subject.tokenizer, AGREEMENT_LENGTH)
    sequences = language.lines(documents, subject.tokenizer, length, options.limit)
    units = agreement.embeddings(subject.model, teacher.model, sequences)
    return Sample(units, {"tokens": sum(map(len, sequences))})


def _predictions(subject: Subject, teacher: Subject | None, documents: Any, options: Options) -> Sample:
    assert teacher is not None
    kinds = [head(each.model) for each in (subject, teacher)]
    if kinds[0] == "none" or kinds[0] != kinds[1]:
        raise FFFError(
            f"task token-agreement got {type(subject.model).__name__} and {type(teacher.model).__name__}; "
            "expected two language models of one kind: leave it out, or take agreement"
        )
    length = longest(subject.model, subject.tokenizer, AGREEMENT_LENGTH)
    if kinds[0] == "masked":
        mask, special, sequences = masked_input(subject, documents, length, options.limit)
        units = agreement.predictions(subject.model, teacher.model, sequences, (mask, special))
    else:
        sequences = language.lines(documents, subject.tokenizer, length, options.limit)
        units = agreement.predictions(subject.model, teacher.model, sequences, None)
    return Sample(units, {"tokens": sum(map(len, sequences))})


_TASKS = [
    *(_similarity(name, table) for name, table in SIMILARITY.items()),
    Task(
        "retrieval",
        (Metric("ndcg@10", lambda units: float(units.mean())),),
        _read_cranfield,
        _retrieve,
        packages=("sklearn",),
    ),
    *(_probe(name, *tables) for name, tables in PROBES.items()),
    *(_glue(name, task) for name, task in GLUE.items()),
    Task(
        "mlm",
        (Metric("loss", ratio(0, 2), higher_is_better=False), Metric("accuracy", ratio(1, 2))),
        read_documents,
        _masked,
    ),
    Task(
        "pseudo-perplexity",
        (Metric("pseudo_perplexity", perplexity(0, 1), higher_is_better=False),),
        read_documents,
        _pseudo,
    ),
    Task(
        "perplexity",
        (Metric("perplexity", perplexity(0, 1), higher_is_better=False),),
        read_documents,
        causal,
    ),
    Task(
        "agreement",
        (
            Metric("embedding_cosine", lambda units: float(units[:, 0].mean())),
            Metric("similarity_spearman", lambda units: SPEARMAN.compute(units[:, 1:])),
        ),
        read_documents,
        _embeddings,
        beside_teacher=True,
    ),
    Task(
        "token-agreement",
        (Metric("top1", ratio(1, 2)), Metric("kl", ratio(0, 2), higher_is_better=False)),
        read_documents,
        _predictions,
        beside_teacher=True,
    ),
]
TASKS = {task.name: task for task in _TASKS}
GROUPS = {"sts": tuple(SIMILARITY), "probe": tuple(PROBES), "glue": tuple(GLUE)}
"""Names that stand for several tasks: for those of them whose data is there."""


def resolve_tasks(names: Sequence[str], known: Sequence[str]) -> dict[str, bool]:
    """The names of tasks, groups taken apart; capitals, blanks, dashes and underscores do not matter.

    Returns:
        For each task whether it was named itself, and not only as one of a group.

    Raises:
        FFFError: A name is unknown, or there is none.
    """
    single, groups = {_plain(name): name for name in known}, {_plain(name): GROUPS[name] for name in GROUPS}
    found: dict[str, bool] = {}
    for name in names:
        plain = _plain(name)
        if plain in groups:
            found = dict.fromkeys(groups[plain], False) | found
        elif plain in single:
            found[single[plain]] = True
        else:
            near = difflib.get_close_matches(name.lower(), [*known, *GROUPS], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise FFFError(f"unknown task {name!r}{hint}; expected one of {', '.join((*GROUPS, *known))}")
    if not found:
        raise FFFError(f"no task was named; expected one of {', '.join((*GROUPS, *known))}")
    return found


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")
