"""The command `distill`."""

from __future__ import annotations

from fffconvert.cli.adapter import command
from fffconvert.cli.app import Converted, DryRun, app
from fffconvert.cli.running import Output
from fffconvert.options import DistillOptions
from fffconvert.records import plain


@command(app, DistillOptions)
def distill(out: Output, model: Converted, options: DistillOptions, *, dry_run: DryRun = False) -> None:
    """Retrain a converted model in DIR with its teacher. Run it again to go on where it was stopped."""
    import yaml

    from fffconvert.errors import need

    need("accelerate", "distill", "train")
    from fffconvert.distillation import distill_folder, recipe_of_folder

    if dry_run:
        recipe = recipe_of_folder(model, options)
        out.document({"recipe": recipe})
        out.show(yaml.safe_dump(plain(recipe), sort_keys=False))
        return
    found = distill_folder(model, options)
    out.document({"output": str(found.output), "training": found.training})
    training = found.training
    loss = "" if training.eval_loss is None else f", held-out loss {training.eval_loss:.4f}"
    out.show(
        f"{training.tokens:,} tokens in {training.steps:,} steps and {training.seconds:,.0f} s "
        f"({training.tokens_per_second:,.0f} tokens/s){loss}",
        f"wrote {found.output}; next: fffconvert evaluate {found.output}",
    )
