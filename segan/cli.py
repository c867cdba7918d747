"""The command `segan`. Jobs run on a Ray cluster, or in this process with --local.

Lines for people go to stderr and results to stdout. Exit codes: 0 done, 1 failed, 2 wrong use.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segan.errors import SeganError, UsageError

if TYPE_CHECKING:
    from segan.config import Config
    from segan.runs import Checkpoint

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="SegAN: skin lesion segmentation by adversarial training, on Ray.",
)
ensembles = typer.Typer(no_args_is_help=True, help="The best three runs as one model.")
app.add_typer(ensembles, name="ensemble")

Local = Annotated[bool, typer.Option("--local", help="In this process, without a Ray cluster.")]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks, and Ray's own output.")]
Threshold = Annotated[
    float | None, typer.Option(min=0, max=1, help="Instead of the one best on validation.")
]


@app.command(epilog="segan synth s3://bucket/drawn --train 400 --validation 60 --test 60")
def synth(
    out: Annotated[str, typer.Argument(help="Folder or s3:// prefix for the archive.")],
    train: Annotated[int, typer.Option(min=0, help="Pairs to train on.")] = 400,
    validation: Annotated[int, typer.Option(min=0, help="Pairs to validate on.")] = 60,
    test: Annotated[int, typer.Option(min=0, help="Pairs to test on.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same pairs.")] = 0,
    short_side: Annotated[int, typer.Option(min=32, help="Pixels of the short side, about.")] = 256,
    debug: Debug = False,
) -> None:
    """Draw dermoscopy-like pairs in the challenge's own folder and file names."""
    from segan import storage
    from segan.data.synthetic import draw_archive
    from segan.terminal import progress, say

    place = storage.normalise(out)
    storage.check_access(place)
    counts = {"train": train, "validation": validation, "test": test}

    def write(name: str, content: bytes) -> None:
        storage.write_bytes(storage.join(place, name), content)

    with progress("drawing", sum(counts.values())) as advance:
        ids = draw_archive(counts, seed, write, short_side, lambda _: advance(1))
    say(f"{len(ids)} pairs drawn to {place}")


@app.command(epilog="segan ingest ./isic2017 s3://bucket/records/isic2017")
def ingest(
    source: Annotated[str, typer.Argument(help="Archive: a folder or s3:// prefix.")],
    out: Annotated[str, typer.Argument(help="Folder or s3:// prefix for the records.")],
    width: Annotated[int, typer.Option(min=64, help="Pixels of a frame.")] = 180,
    height: Annotated[int, typer.Option(min=64, help="Pixels of a frame.")] = 135,
    rows_per_shard: Annotated[int, typer.Option(min=1, help="Pairs in a Parquet file.")] = 250,
    max_rejects: Annotated[
        float, typer.Option(min=0, max=1, help="Share of rejected pairs that stops the job.")
    ] = 0.05,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace records there.")] = False,
    local: Local = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Read an archive's pairs, check and resize them, and write them as records."""
    from segan import storage
    from segan.data.archive import check_rejects, open_archive
    from segan.data.ingest import clear_place, finish, plan_shards, write_task
    from segan.terminal import progress, say, table

    place, size = storage.normalise(out), (width, height)
    archive = open_archive(storage.normalise(source))
    found = len(archive.pairs) + len(archive.rejects)
    check_rejects(archive.rejects, found, max_rejects, archive.uri)
    tasks = plan_shards(archive, rows_per_shard)
    clear_place(place, overwrite)
    if local:
        done: Iterator[dict[str, Any]] = (write_task(task, place, size) for task in tasks)
    else:
        from ray_jobs.ingest import write_shards

        _join_cluster(debug)
        done = write_shards(tasks, place, size)
    with progress("ingesting", len(archive.pairs)) as advance:
        written = [_advanced(one, advance, one["pairs"]) for one in done]
    manifest = finish(archive, place, written, size, max_rejects)
    rows = [[split, manifest.rows(split), len(manifest.shards(split))] for split in manifest.splits]
    if manifest.rejects:
        say(
            f"{manifest.rejects} of {found} pairs rejected: {place}/rejects.parquet has the reasons"
        )
    if as_json:
        print(json.dumps(manifest.model_dump()))
    else:
        table(f"records at {place}", ["split", "pairs", "shards"], rows)


@app.command(epilog="segan train ./runs/first --config ray_jobs/configs/demo.yaml network.width=8")
def train(
    run: Annotated[str, typer.Argument(help="Folder or s3:// prefix of the run.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; the paper's values else.")] = None,
    local: Local = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train segmentor and critic; a run that was stopped goes on from its latest checkpoint."""
    from segan.runs import Run
    from segan.terminal import TrainingDisplay

    settings, place = _settings(config, overrides), Run(run)
    if local:
        from segan.training.loop import Watchers
        from segan.training.session import train_here

        with TrainingDisplay() as display:
            train_here(settings, place, Watchers(observe=display))
    else:
        from ray_jobs.train import train as train_on_ray
        from segan.training.session import make_plan

        make_plan(settings, place)  # what cannot work is said before a cluster is joined
        _join_cluster(debug)
        with TrainingDisplay() as display:
            train_on_ray(settings, place, display)
    best = place.best()
    assert best is not None, "a finished run has a checkpoint"
    _show_run(best, as_json)


@app.command(epilog="segan tune s3://bucket/studies/first --config ray_jobs/configs/demo.yaml")
def tune(
    study: Annotated[str, typer.Argument(help="Folder or s3:// prefix of the study.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; the paper's values else.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Then all trials to their end, in STUDY-whole.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Search learning rate, clamp and final k with ASHA; a study that was stopped goes on."""
    from ray_jobs.tune import search
    from segan.search import Study
    from segan.terminal import say, show_study

    settings, place = _settings(config, overrides), Study(study)
    wanted = [(place, settings)]
    if compare:
        whole = settings.search.model_copy(update={"early_stopping": False})
        other = settings.model_copy(update={"search": whole})
        wanted.append((Study(f"{place.uri}-whole"), other))
    _join_cluster(debug)

    def tell(trial: str, metrics: dict[str, Any], go_on: bool) -> None:
        last = metrics["epoch"] >= settings.training.epochs
        word = "finished" if last else "goes on" if go_on else "given up"
        say(f"{trial}  epoch {metrics['epoch']}  Jaccard {metrics['jaccard']:.3f}  {word}")

    for one, its_settings in wanted:
        search(its_settings, one, tell)
    boards = {one.uri: one.leaderboard() for one, _ in wanted}
    if as_json:
        print(json.dumps(boards))
        return
    for uri, rows in boards.items():
        show_study(uri, rows)


@app.command(epilog="segan evaluate s3://bucket/runs/first s3://bucket/isic2017 --split test")
def evaluate(
    model: Annotated[str, typer.Argument(help="URI of a run, a checkpoint or an ensemble.")],
    archive: Annotated[str, typer.Argument(help="Archive: a folder or s3:// prefix.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    threshold: Threshold = None,
    local: Local = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score a model against an archive's masks, at the original images' size."""
    from segan import storage
    from segan.data.archive import open_archive
    from segan.evaluation.score import score_pair, summarise
    from segan.inference.predictor import Predictor
    from segan.terminal import progress, table

    pairs = open_archive(storage.normalise(archive)).split(split)
    predictor = Predictor.load(model, threshold)
    if local:
        done: Iterator[dict[str, Any]] = (score_pair(predictor, pair) for pair in pairs)
    else:
        from ray_jobs.evaluate import score

        _join_cluster(debug)
        done = score(pairs, predictor.name, threshold)
    with progress("scoring", len(pairs)) as advance:
        rows = sorted((_advanced(one, advance) for one in done), key=lambda row: str(row["id"]))
    summary = summarise(rows) | {"threshold": predictor.threshold, "split": split}
    members = [
        {"model": member.name, "threshold": member.threshold, **scores}
        for member, scores in zip(predictor.members, summary.pop("members", ()), strict=False)
    ]
    if as_json:
        found = {"model": predictor.name, "members": members, "scores": rows}
        print(json.dumps(summary | found))
        return
    names = ["accuracy", "dice", "jaccard", "threshold"]
    shown = [(f"member {i}", member) for i, member in enumerate(members, 1)]
    shown.append(("ensemble" if members else "model", summary))
    table(
        f"{predictor.name} on {summary['images']} images of {split}",
        ["", *names],
        [[who, *(scores[n] for n in names)] for who, scores in shown],
    )


@app.command(epilog="segan predict s3://bucket/runs/first ./photographs ./masks")
def predict(
    model: Annotated[str, typer.Argument(help="URI of a run, a checkpoint or an ensemble.")],
    images: Annotated[str, typer.Argument(help="An image, a folder or an s3:// prefix.")],
    out: Annotated[str, typer.Argument(help="Folder or s3:// prefix for the masks.")],
    threshold: Threshold = None,
    local: Local = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the mask of each image at its own size, in the challenge's file names."""
    from segan import storage
    from segan.inference.masks import find_images, write_mask
    from segan.inference.predictor import Predictor
    from segan.terminal import progress, say

    found, place = find_images(images), storage.normalise(out)
    storage.check_access(place)
    predictor = Predictor.load(model, threshold)
    if local:
        write = functools.partial(write_mask, predictor, out=place)
        done: Iterator[dict[str, Any]] = (write(image) for image in found)
    else:
        from ray_jobs.predict import predict as predict_on_ray

        _join_cluster(debug)
        done = predict_on_ray(found, predictor.name, place, threshold)
    with progress("predicting", len(found)) as advance:
        rows = sorted((_advanced(one, advance) for one in done), key=lambda row: str(row["id"]))
    rejects = [row for row in rows if row["reject"]]
    for row in rejects:
        say(f"not segmented: {row['reject']}")
    if as_json:
        print(json.dumps(rows))
    else:
        say(f"{len(rows) - len(rejects)} masks written to {place}")
    if rejects:
        raise SeganError(f"{len(rejects)} of {len(rows)} images could not be read")


@ensembles.command("build", epilog="segan ensemble build --study s3://b/studies/k --out s3://b/e/k")
def build_ensemble(
    out: Annotated[str, typer.Option(help="Folder or s3:// prefix for the ensemble.")],
    study: Annotated[str | None, typer.Option(help="URI of a study: its trials' best.")] = None,
    member: Annotated[
        list[str] | None, typer.Option(help="URI of a run or checkpoint; can be given again.")
    ] = None,
    records: Annotated[str, typer.Option(help="URI of the records; the runs' own else.")] = "",
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Each member by what it adds to those before it.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an ensemble.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make one model of the three best runs, with a threshold of its own."""
    from segan.evaluation.select import build_ensemble, find_candidates
    from segan.terminal import say, show_ensemble

    if not (study or member):
        raise UsageError("ensemble build: expected --study URI or --member URI, found neither")
    candidates = find_candidates(study, member or ())
    ensemble = build_ensemble(out, candidates, records, greedy, overwrite, say)
    if as_json:
        print(ensemble.model_dump_json())
    else:
        show_ensemble(out, ensemble)


@app.command("config", epilog="segan config --config ray_jobs/configs/demo.yaml network.width=8")
def show_config(
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; the paper's values else.")] = None,
    as_json: Json = False,
) -> None:
    """List every knob with its value and what it means."""
    from segan.config import known_keys, load_config
    from segan.terminal import table

    tree = load_config(config, overrides or []).model_dump(mode="json")
    if as_json:
        print(json.dumps(tree))
        return
    rows = [(key, *key.split("."), field.description) for key, field in known_keys()]
    shown = [[key, json.dumps(tree[section][leaf]), text] for key, section, leaf, text in rows]
    table(
        "(P) the paper, (F) its Figure 1, (C) the authors' code, (O) our choice",
        ["key", "value", "meaning"],
        shown,
        left=(0, 2),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; a person's mistake is one line on stderr, and `--debug` adds the traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(words, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.Exit as exit_:
        return exit_.exit_code
    except typer.Abort:
        return _fail("interrupted", 130, False)
    except SeganError as error:
        return _fail(str(error), error.exit_code, "--debug" in words)
    except KeyboardInterrupt:
        return _fail("interrupted", 130, False)
    except Exception as error:
        if hasattr(error, "format_message"):  # wrong use, as the command-line library says it
            message = error.format_message()
            return _fail(message, UsageError.exit_code, False) if message else UsageError.exit_code
        raise


def _fail(text: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"segan: {text}", file=sys.stderr)
    return code


def _settings(config: Path | None, overrides: list[str] | None) -> Config:
    """The configuration, its records by a URI that holds in any process's folder."""
    from segan import storage
    from segan.config import load_config

    settings = load_config(config, overrides or [])
    if not settings.data.records:
        return settings
    data = settings.data.model_copy(update={"records": storage.normalise(settings.data.records)})
    return settings.model_copy(update={"data": data})


def _join_cluster(debug: bool) -> None:
    from ray_jobs.cluster import connect
    from segan.terminal import say

    address = os.environ.get("RAY_ADDRESS")
    say(f"joining the Ray cluster {address}" if address else "starting Ray on this machine")
    connect(debug)


def _advanced(
    one: dict[str, Any], advance: Callable[[int], None], number: int = 1
) -> dict[str, Any]:
    advance(number)
    return one


def _show_run(best: Checkpoint, as_json: bool) -> None:
    from segan.terminal import table

    metrics = {k: v for k, v in best.info["metrics"].items() if k != "jaccard_curve"}
    if as_json:
        print(json.dumps({"checkpoint": best.uri, **metrics}))
        return
    names = ["epoch", "accuracy", "dice", "jaccard", "threshold"]
    title = f"best of {best.uri.rsplit('/checkpoints/', 1)[0]} on validation"
    table(title, ["checkpoint", *names], [[best.name, *(metrics[name] for name in names)]])


if __name__ == "__main__":
    sys.exit(main())
