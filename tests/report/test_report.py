"""Reports of tiny runs, written by the command line."""

from __future__ import annotations

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from segan import storage
from segan.cli.main import main
from segan.config import load_config
from segan.errors import UsageError
from segan.report.write import try_write_report, write_report
from segan.runs.ablation import prepare_trials
from segan.runs.ensemble import read_ensemble
from segan.runs.run import Run
from segan.runs.study import Study
from segan.training.launch import train_all_local
from tests.inference.models import copy_files, tiny_config
from tests.report.tiny_study import SPLITS, TinyStudy


class Page(HTMLParser):
    """The tags of a page; fails if they do not nest or the page would load something."""

    VOID = ("meta", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert tag not in ("script", "link", "iframe")
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert value is not None
                assert value.startswith("data:image/jpeg;base64,")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(uri: str) -> Page:
    return Page(storage.read_bytes(uri).decode())


def test_run(tiny_study: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny_study.runs[0]
    assert main(["report", run, "--json", "--out", f"{tmp_path}/page.html"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == storage.read_json(f"{tmp_path}/page.json")
    best = Run(run).best_checkpoint()
    assert best is not None
    # Rounding depends on the batch size and can move a few pixels across a threshold.
    for name, interval in found["result"]["scores"].items():
        assert interval["mean"] == pytest.approx(best.info.metrics[name], abs=1e-3)
        assert interval["low"] <= interval["mean"] <= interval["high"]
    assert found["result"]["threshold_curves"]["jaccard"] == pytest.approx(
        best.info.metrics["jaccard_curve"], abs=1e-3
    )
    assert len(found["result"]["images"]) == SPLITS["validation"]
    assert found["models"][0]["uri"] == best.uri
    assert [line["epoch"] for line in found["epochs"]] == [1, 2, 3]
    page = read_page(f"{tmp_path}/page.html")
    assert f"{best.jaccard:.3f}" in page.text
    assert "none is a test score" in page.text
    assert page.tags.count("image") == SPLITS["validation"] // 3 * 3
    assert not storage.exists(f"{run}/report.html")


def test_command_reproduces_the_config(tiny_study: TinyStudy) -> None:
    for uri, verb, wanted in (
        (tiny_study.runs[1], "train", Run(tiny_study.runs[1]).description()["config"]),
        (tiny_study.study, "tune", study_config(tiny_study)),
    ):
        command = write_report(uri).provenance.command
        program, said, place, *overrides = shlex.split(command.replace("\\\n", ""))
        assert (program, said, place) == ("segan", verb, uri)
        found = load_config(None, overrides).model_dump(mode="json")
        for section, branch in wanted.items():
            assert branch.items() <= found[section].items()


def test_an_ablation_has_a_report_with_its_own_command(
    tiny_study: TinyStudy, tmp_path: Path
) -> None:
    variants = {"paper": {}, "per-level": {"loss.reduction": "per_level"}}
    ablation = f"ablation.variants={json.dumps(variants)}"
    config = tiny_config(tiny_study.records, "ablation.seeds=1", ablation)
    study = Study(str(tmp_path / "study"))
    fingerprint = Run(tiny_study.runs[0]).description()["identity"]["fingerprint"]
    trials = prepare_trials(config, study, fingerprint)
    train_all_local(config, trials, lambda *_: None, lambda: False)
    report = write_report(study.uri)
    assert report.search is not None
    assert (report.search.algorithm, report.search.rungs) == ("ablation", ())
    assert {trial.status for trial in report.search.trials} == {"finished"}
    program, verb, place, *overrides = shlex.split(report.provenance.command.replace("\\\n", ""))
    assert (program, verb, place) == ("segan", "ablate", study.uri)
    assert load_config(None, overrides) == config
    assert "per-level-seed0" in read_page(f"{study.uri}/report.html").text


def study_config(tiny_study: TinyStudy) -> dict[str, Any]:
    return Study(tiny_study.study).config() | {"data": {"records": tiny_study.records}}


def test_study(tiny_study: TinyStudy) -> None:
    report = write_report(tiny_study.study)
    best = max((Run(uri).best_checkpoint() for uri in tiny_study.runs), key=lambda c: c.jaccard)
    assert report.models[0].uri == best.uri
    assert report.search is not None
    assert report.search.trials[0].jaccard == pytest.approx(best.jaccard)
    assert [trial.epochs for trial in report.search.trials] == [3, 3, 3]
    assert [rung.epoch for rung in report.search.rungs] == [1]
    text = read_page(f"{tiny_study.study}/report.html").text
    for words in ("Search", "Learning rate and weight clip have logarithmic axes", "ASHA rungs"):
        assert words in text
    assert all(f"trial_00{number}" in text for number in range(3))


def test_ensemble(tiny_study: TinyStudy) -> None:
    # The report of the build and one written later differ only in their time.
    first = storage.read_json(f"{tiny_study.ensemble}/report.json")
    ensemble = read_ensemble(tiny_study.ensemble)
    again = write_report(tiny_study.ensemble).model_dump(mode="json")
    assert again | {"written_at": ""} == first | {"written_at": ""}
    found = first["result"]
    assert found["scores"]["jaccard"]["mean"] == pytest.approx(ensemble.scores["jaccard"])
    assert [model["uri"] for model in first["models"]] == [m.uri for m in ensemble.members]
    for member, entry in zip(found["members"], ensemble.members, strict=True):
        jaccard = member["scores"]["jaccard"]["mean"]
        assert jaccard == pytest.approx(entry.info.metrics["jaccard"], abs=1e-3)
    assert all(0 <= image["disagreement"] <= 1 for image in found["images"])
    text = read_page(f"{tiny_study.ensemble}/report.html").text
    assert "Disagreement of the members" in text
    assert f"--member {ensemble.members[0].uri}" in text


def test_card(tiny_study: TinyStudy) -> None:
    card = storage.read_bytes(f"{tiny_study.ensemble}/card.md").decode()
    found = storage.read_json(f"{tiny_study.ensemble}/report.json")["result"]
    scores = found["scores"]["jaccard"]
    assert f"{scores['mean']:.4f} ({scores['low']:.3f} to {scores['high']:.3f})" in card
    for group in found["slice_groups"]:
        for one in group["slices"]:
            interval = f"{one['low']:.3f} to {one['high']:.3f}" if one["low"] else "too few"
            row = f"| {one['name']} | {one['num_images']} | {one['jaccard']:.3f} | {interval} |"
            assert row in card
    for words in (
        "no medical device",
        "## Training",
        "## Data",
        "## Limits",
        "optimistically biased",
    ):
        assert words in card


def test_training_writes_a_report_and_survives_its_failure(
    tiny_study: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tiny_study.records)
    words = [f"data.records={tiny_study.records}", "network.width=2", "augment.crop=64"]
    words += ["training.batch_size=4", "training.epochs=1", "cluster.threads_per_worker=1"]
    assert main(["train", f"{tmp_path}/run", "--local", *words]) == 0
    assert f"report: {tmp_path}/run/report.html" in capsys.readouterr().err
    assert storage.read_json(f"{tmp_path}/run/report.json")["kind"] == "run"

    # The run has ended, and reports are off: nothing is written.
    storage.delete_file(f"{tmp_path}/run/report.html")
    assert main(["train", f"{tmp_path}/run", "--local", *words, "evaluation.report=false"]) == 0
    assert not storage.exists(f"{tmp_path}/run/report.html")

    # A folder has the page's name.
    storage.write_bytes(f"{tmp_path}/run/report.html/in the way", b"")
    assert main(["train", f"{tmp_path}/run", "--local", *words]) == 0
    said = capsys.readouterr().err
    assert re.search(
        rf"report not written \(.*report\.html.*\); write it with `segan report {tmp_path}/run`",
        said,
    )
    assert config.evaluation.report


def test_errors(tiny_study: TinyStudy, tmp_path: Path) -> None:
    Run(f"{tmp_path}/begun").create_or_resume(tiny_config(tiny_study.records), "f")
    with pytest.raises(UsageError, match=r"begun: no validated checkpoint yet"):
        write_report(f"{tmp_path}/begun")
    assert main(["report", str(tmp_path / "nothing")]) == 1
    other = f"{tmp_path}/records"
    copy_files(tiny_study.records, other)
    manifest = storage.read_json(f"{other}/manifest.json")
    storage.write_json(f"{other}/manifest.json", manifest | {"fingerprint": "other"})
    with pytest.raises(UsageError, match=r"data fingerprint is 'other', expected .*--records"):
        write_report(tiny_study.runs[0], records=other)
    told: list[str] = []
    try_write_report(f"{tmp_path}/nothing", told.append)
    assert len(told) == 1
    assert told[0].startswith("report not written (")


def test_names_are_escaped(tiny_study: TinyStudy, tmp_path: Path) -> None:
    evil = f"{tmp_path}/<b onclick=alert(1)>"
    copy_files(tiny_study.runs[0], evil)
    write_report(evil)
    assert "b" in read_page(f"{evil}/report.html").tags  # the template's own, without attributes
    assert "<b onclick" in read_page(f"{evil}/report.html").text
