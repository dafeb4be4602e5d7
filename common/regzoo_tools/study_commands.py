"""The commands of ``regzoo study``."""

from __future__ import annotations

from regzoo_tools.study.description import read_study


class Study:
    """Run many trainings and evaluations, described in a JSON file, on this machine or on a cluster."""

    def run(
        self,
        study: str,
        scale: str | None = None,
        out: str | None = None,
        executor: str = "local",
        jobs: int = 1,
        redo: bool = False,
    ) -> None:
        """Run what is missing of a study: every method on every fold, repeat and training-set size.

        The same command resumes a study that was interrupted. The exit status is 1 unless all cells are done.

        Args:
            study: JSON file that describes it, such as studies/hu2018.json.
            scale: one of the scales in the file, such as small.
            out: folder for the results; by default output/NAME beside the file, with the scale.
            executor: local (this machine, until all is done) or slurm (submits arrays of jobs).
            jobs: how many cells run at the same time.
            redo: also run cells again that were made with other settings, data or code. Earlier results are moved to
                outdated/.
        """
        described = read_study(study, scale, out)
        from regzoo_tools.study.scheduling import run_study

        run_study(described, executor, jobs, redo)

    def status(self, study: str, scale: str | None = None, out: str | None = None) -> None:
        """Show how many cells of a study are done, and the last lines of those that failed.

        Args:
            study: JSON file that describes it.
            scale: one of the scales in the file.
            out: the folder of the results, as for run.
        """
        from regzoo_tools.study.status import status_text

        print(status_text(read_study(study, scale, out)))

    def report(self, study: str, scale: str | None = None, out: str | None = None) -> None:
        """Write the tables, tests and figures of a study: one page for a browser, and CSV files.

        A study that is not complete gets a report of what is there, which says what is missing.

        Args:
            study: JSON file that describes it; its key report says what to compare.
            scale: one of the scales in the file.
            out: the folder of the results, as for run.
        """
        described = read_study(study, scale, out)
        from regzoo_tools.study.report import write_report

        page, cells = write_report(described)
        print(f"{page}: {cells}")
