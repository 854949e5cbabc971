"""`sample`: files and index of a run, restart, refusals."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from fake_engine import FakeEngine, byte_tokenizer
from toy_problems import Toy, lines, serving, write_problems

from rrtf_serve.models.families import FAMILIES
from rrtf_serve.models.prompts import Prompts
from rrtf_serve.problems.evaluate import Run
from rrtf_serve.problems.samplers import Decoding, EngineSampler, SamplerError
from rrtf_serve.problems.suites import SUITES
from training.cli import main
from training.problem_sets import TRAINABLE, check_trainable, load_problem_set
from training.sample import SampleOptions, _fitting, read_index, sample
from training.sources import Source


@pytest.fixture
def problems(tmp_path: Path) -> str:
    return str(write_problems(tmp_path / "toy.jsonl"))


def far(url: str, **keys: object) -> Source:
    return Source("far", "teacher", kind="url", url=url, k=2, temperatures=(0.0, 0.8), **keys)  # type: ignore[arg-type]


def test_a_file_for_each_temperature_and_nothing_is_asked_twice(problems: str, tmp_path: Path) -> None:
    toy, folder = Toy(), tmp_path / "run"
    with serving(toy) as url:
        options = SampleOptions((problems,), (far(url), Source("experts", "teacher", kind="reference")))
        report = sample(options, folder)
        assert [report[stem]["total"] for stem in ("far-t0", "far-t0.8", "experts")] == [3, 6, 3]
        assert (report["far-t0.8"]["samples"], report["far-t0.8"]["tokens"]) == (6, 66)
        assert report["far-t0.8"]["tokens_per_second"] > 0
        asked = len(toy.asked)
        assert asked == 9
        again = sample(options, folder)
        assert len(toy.asked) == asked
        assert again["far-t0"]["samples"] == 0
    index = read_index(folder)
    assert [(each.stem, each.source, each.role) for each in index.files] == [
        ("far-t0", "far", "teacher"), ("far-t0.8", "far", "teacher"), ("experts", "experts", "teacher"),
    ]  # fmt: skip
    assert lines(folder / "samples" / "experts.jsonl")[0]["completion"] == "    return n * 2\n"
    speed = lines(folder / "samples" / "speed.jsonl")
    assert [each["samples"] for each in speed] == [3, 6]  # what made nothing says nothing


def test_a_server_that_goes_leaves_what_it_answered(problems: str, tmp_path: Path) -> None:
    toy, folder = Toy(left=4), tmp_path / "run"
    with serving(toy) as url:
        options = SampleOptions((problems,), (far(url, batch=1),))
        with pytest.raises(SamplerError, match="1 of 6 samples are kept"):
            sample(options, folder)
        toy.left, before = None, len(toy.asked)
        sample(options, folder)
        assert len(toy.asked) - before == 5
    assert len(lines(folder / "samples" / "far-t0.8.jsonl")) == 6


def test_sources_and_problems_may_be_added_and_not_taken_away(problems: str, tmp_path: Path) -> None:
    experts = Source("experts", "teacher", kind="reference")
    more = write_problems(tmp_path / "more.jsonl", "double")
    more.write_text(more.read_text().replace("t/double", "u/double"))
    folder = tmp_path / "run"
    sample(SampleOptions((problems,), (experts,)), folder)
    report = sample(SampleOptions((problems, str(more)), (experts,)), folder)
    assert report["experts"]["total"] == 4
    with pytest.raises(ValueError, match=r"--problems: .*was sampled with .*more.jsonl"):
        sample(SampleOptions((problems,), (experts,)), folder)
    with pytest.raises(ValueError, match=r"--format: .*was sampled with chat"):
        sample(SampleOptions((problems, str(more)), (experts,), format="completion"), folder)
    changed = Path(problems)
    changed.write_text(changed.read_text().replace("n * 3", "n + n + n"))
    with pytest.raises(
        ValueError, match="1 problems have changed since they were sampled, or are gone: t/triple"
    ):
        sample(SampleOptions((problems, str(more)), (experts,)), folder)


def test_a_changed_problem_is_not_judged_by_its_new_tests(problems: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    sample(SampleOptions((problems,), (Source("experts", "teacher", kind="reference"),)), folder)
    path = Path(problems)
    kept = path.read_text()
    path.write_text(kept.replace("== 9", "== 10"))
    with pytest.raises(ValueError, match="2 problems have changed since they were sampled"):
        read_index(folder).load(None)
    path.write_text("".join(kept.splitlines(keepends=True)[1:]))
    with pytest.raises(ValueError, match=r"1 problems have changed .* or are gone: t/double"):
        read_index(folder).load(None)
    path.write_text(kept)
    assert list(read_index(folder).load(None).problems) == ["t/double", "t/triple", "t/square"]


def test_a_name_stands_for_one_source(problems: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with serving(Toy()) as url, serving(Toy()) as other:
        sample(SampleOptions((problems,), (far(url),)), folder)
        elsewhere = replace(far(other), temperatures=(0.2,))
        with pytest.raises(ValueError, match=f"source far: .*was drawn from source far .*this is .*{other}"):
            sample(SampleOptions((problems,), (elsewhere,)), folder)
        named = Source("far-t0.8", "teacher", kind="reference")
        with pytest.raises(ValueError, match=r"source far-t0\.8: .*was drawn from source far "):
            sample(SampleOptions((problems,), (named,)), folder)
        with pytest.raises(ValueError, match=r"far-t0\.8\.jsonl would hold answers of two kinds"):
            SampleOptions((problems,), (far(url), named))
        with pytest.raises(ValueError, match=r"far-t0\.1\.jsonl would hold answers of two kinds"):
            SampleOptions((problems,), (replace(far(url), temperatures=(0.1, 0.10000001)),))
        sample(SampleOptions((problems,), (replace(far(url), role="student", temperatures=(0.2,)),)), folder)
    assert {each.role for each in read_index(folder).files} == {"student"}


def test_a_damaged_index_is_not_written_over(problems: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = SampleOptions((problems,), (Source("experts", "teacher", kind="reference"),))
    sample(options, folder)
    index = folder / "samples" / "index.json"
    index.write_text(index.read_text()[:-5])
    with pytest.raises(ValueError, match=r"index\.json: damaged .*move it away"):
        sample(options, folder)
    index.unlink()
    assert sample(options, folder)["experts"]["total"] == 3


def test_sources_that_are_drawn_from_at_once_are_all_in_the_index(problems: str, tmp_path: Path) -> None:
    options = [
        SampleOptions((problems,), (Source(f"r{number}", "teacher", kind="reference"),))
        for number in range(12)
    ]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(sample, options, [tmp_path / "run"] * 12))
    assert {each.source for each in read_index(tmp_path / "run").files} == {f"r{n}" for n in range(12)}


def test_problems_that_a_model_has_no_room_for_are_named(problems: str) -> None:
    tokenizer = byte_tokenizer()
    prompts = Prompts(
        tokenizer, FAMILIES["qwen2.5-coder"], chat_template="", add_bos=False, bos_token="", end_tokens=()
    )
    engine = FakeEngine()  # a context of 512, and a token for each byte
    sampler = EngineSampler(engine, tokenizer, prompts, model="m", digest="d", batch=4)
    suite = load_problem_set([problems]).suite
    run = Run(suite, "completion", Decoding(max_tokens=512 - len(suite.problems["t/double"].prompt)))
    fitting, too_long = _fitting(run, sampler)
    assert (list(fitting.suite.problems), too_long) == (list(suite.problems), [])
    longer = suite.problems["t/double"].prompt.replace("The", "The really")
    path = Path(problems)
    path.write_text(path.read_text().replace("The double", "The really double"))
    run = Run(load_problem_set([problems]).suite, "completion", Decoding(max_tokens=513 - len(longer)))
    fitting, too_long = _fitting(run, sampler)
    assert (list(fitting.suite.problems), too_long) == (["t/triple", "t/square"], ["t/double"])
    with pytest.raises(ValueError, match="no problem leaves room for --max-tokens 512"):
        _fitting(Run(suite, "completion", Decoding(max_tokens=512)), sampler)


def test_what_a_server_finds_too_long_is_left_out_and_named(
    problems: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(Toy(refuses=("triple",))) as url:
        options = SampleOptions((problems,), (far(url, batch=2),))
        report = sample(options, tmp_path / "run")
        assert [(report[stem]["total"], report[stem]["too_long"]) for stem in ("far-t0", "far-t0.8")] == [
            (2, ["t/triple"]), (4, ["t/triple"]),
        ]  # fmt: skip
        assert "leaves no room in a context of 9" in caplog.text
        assert sample(options, tmp_path / "run")["far-t0.8"]["samples"] == 0
    with serving(Toy(refuses=("double", "triple", "square"))) as url:
        options = SampleOptions((problems,), (far(url),))
        with pytest.raises(ValueError, match="no problem leaves room"):
            sample(options, tmp_path / "none")


@pytest.mark.parametrize("name", sorted(SUITES.keys() - set(TRAINABLE)))
def test_no_test_and_no_development_set_is_trained_on(name: str) -> None:
    with pytest.raises(ValueError, match=f"--problems {name}: "):
        check_trainable(name)


def test_problem_sets_that_can_not_be_used(problems: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_text(Path(problems).read_text())
    with pytest.raises(ValueError, match=r"its task 't/double' is in toy\.jsonl too"):
        load_problem_set([problems, str(copy)])
    with pytest.raises(ValueError, match="--problems: name at least one"):
        load_problem_set([])
    with pytest.raises(ValueError, match="--limit"):
        load_problem_set([problems], limit=0)
    found = load_problem_set([problems], limit=2)
    assert list(found.problems) == ["t/double", "t/triple"]
    assert found.suite_of["t/double"] == "toy.jsonl"


def test_a_source_name_must_be_its_own(problems: str) -> None:
    one = Source("a", "teacher", kind="reference")
    with pytest.raises(ValueError, match="source a: the name comes twice"):
        SampleOptions((problems,), (one, one))
    with pytest.raises(ValueError, match="no source"):
        SampleOptions((problems,), ())


def test_the_command(problems: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "run")
    with serving(Toy()) as url:
        flags = ["sample", folder, "--problems", problems, "--name", "far", "--role", "student", "--url", url]
        assert main([*flags, "--k", "1", "--batch", "2", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["far-t0.8"]["total"] == 3
        assert main([*flags, "--k", "1", "--batch", "2"]) == 0
        assert "far-t0.8 (student): 3 answers of toy-model" in capsys.readouterr().err
        assert main([*flags, "--k", "0"]) == 2
        assert main(["sample", folder, "--problems", "humaneval", *flags[4:]]) == 2
        assert "is a test" in capsys.readouterr().err


_LIMITED = """
import resource, signal, sys
from training.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write beyond the limit fails as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("size", "named"), [(100, "index.json"), (1500, "far-t0.8.jsonl")])
def test_a_full_disk_is_named_and_loses_nothing(problems: str, tmp_path: Path, size: int, named: str) -> None:
    folder, toy = tmp_path / "run", Toy()
    with serving(toy) as url:
        flags = ["sample", str(folder), "--problems", problems, "--name", "far", "--role", "teacher"]
        flags += ["--url", url, "--k", "2", "--batch", "1"]
        command = [sys.executable, "-c", _LIMITED, str(size), *flags]
        stopped = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert stopped.returncode == 1
        assert f"{named}'" in stopped.stderr.splitlines()[-1]
        assert "Traceback" not in stopped.stderr
        asked = len(toy.asked)
        assert main(flags) == 0
    drawn = lines(folder / "samples" / "far-t0.8.jsonl")
    assert len({each["key"] for each in drawn}) == len(drawn) == 6
    assert len(toy.asked) <= asked + 6 - max(asked - 2, 0)  # but for the one that was cut and one under way
