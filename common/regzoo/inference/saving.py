"""Writing the results of a batch run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regzoo.engines.running import bundle_name, running_workflow
from regzoo.engines.streams import Failures, name_of
from regzoo.errors import RegZooError
from regzoo.files import file_name
from regzoo.inference.outputs import RegistrationResult, check_target, requested_outputs
from regzoo.ownership import discard
from regzoo.report.engine import cases_of

if TYPE_CHECKING:
    from ignite.engine import Engine

logger = logging.getLogger(__name__)


class SaveRegistration:
    """Ignite handler of an evaluator: writes every registered case to ``<output_dir>/<case>/``.

    Args:
        outputs: which files to write, see `RegistrationResult.save`.
        records: the cases of the run; their folders are checked before any work is done, see `check_target`.
        failures: the failures of the run. A case whose result cannot be written is added to them, and the run goes on;
            without a list of failures, the run ends. If a case fails, here or earlier, an earlier result of the same
            case is removed.
    """

    def __init__(
        self,
        output_dir: str | PathLike[str],
        outputs: Sequence[str] | str | None = None,
        records: Sequence[Mapping[str, Any]] = (),
        failures: Failures | None = None,
    ) -> None:
        self.outputs = requested_outputs(outputs)
        self.output_dir = Path(output_dir)
        self.failures = failures
        self.bundle = bundle_name(running_workflow())
        if failures is not None:
            failures.listeners.append(lambda record: discard(self._folder(name_of(record)), self.bundle))
        for record in records:
            check_target(self._folder(name_of(record)), self.outputs, self.bundle, record)

    def _folder(self, case: str) -> Path:
        return self.output_dir / file_name(case)

    def attach(self, engine: Engine) -> None:
        from ignite.engine import Events

        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the cases of the current iteration."""
        for item in cases_of(engine):
            try:
                result = RegistrationResult.of(item, self.bundle)
                folder = result.save(self._folder(result.case), self.outputs)
            except RegZooError as error:
                if self.failures is None:
                    raise
                self.failures.add(item, error)
                continue
            print(f"{result.case}: {folder}", flush=True)
            for line in result.statistics["warnings"]:
                logger.warning("%s: %s", result.case, line)
