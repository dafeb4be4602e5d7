"""An expression of a configuration can find the workflow that evaluates it."""

import json
from pathlib import Path

from monai.bundle import ConfigWorkflow
from regzoo.engines.running import running_workflow


def test_an_expression_finds_its_workflow_and_can_change_a_setting_before_it_is_used(tmp_path: Path) -> None:
    config = {
        "imports": ["$import regzoo.engines.running as running"],
        "size": 1,
        "initialize": ["$running.running_workflow().parser.set(7, 'size')"],
        "run": ["$@size"],
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    workflow = ConfigWorkflow(str(file), meta_file=None, logging_file=False, workflow_type=None)
    workflow.initialize()
    assert workflow.run() == [7]


def test_outside_a_workflow_there_is_none() -> None:
    assert running_workflow() is None
