"""The examples in docstrings run, and every public function of explanations has one."""

import doctest
import importlib
import inspect
import json

import numpy as np
import pytest
import torch

import igfast
from igfast.explanation.explain import Explains

MODULES = [
    "igfast.alibi",
    "igfast.baselines.check",
    "igfast.baselines.features",
    "igfast.baselines.tokens",
    "igfast.diagnosis.checks",
    "igfast.explanation.explain",
    "igfast.explanation.result",
    "igfast.viz.charts",
    "igfast.viz.figures",
    "igfast.viz.images",
    "igfast.viz.page",
    "igfast.viz.plot",
    "igfast.viz.texts",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path):
    torch.manual_seed(0)
    known = {"igfast": igfast, "torch": torch, "np": np, "json": json, "tmp_path": tmp_path}
    result = doctest.testmod(importlib.import_module(name), extraglobs=known, raise_on_error=False)
    assert result.attempted > 0
    assert result.failed == 0


PUBLIC = [
    Explains.explain,
    igfast.alibi.IntegratedGradients,
    igfast.Explanation,
    igfast.alibi.IntegratedGradients.explain,
    *(value for name, value in vars(igfast.Explanation).items() if name[0] != "_" and callable(value)),
    igfast.Explanation.from_json,
    igfast.Explanation.load,
    igfast.diagnose,
    *(
        value
        for module in (igfast.baselines, igfast.viz)
        for value in vars(module).values()
        if inspect.isfunction(value)
    ),
]


@pytest.mark.parametrize("value", PUBLIC, ids=lambda value: value.__qualname__)
def test_has_an_example(value):
    assert ">>>" in inspect.getdoc(value)
