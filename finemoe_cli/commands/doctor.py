"""``finemoe doctor``: what this machine offers, and what stands in the way."""

from __future__ import annotations

from typing import Annotated

import typer

from finemoe_cli import options
from finemoe_cli.exit_codes import ExitCode
from finemoe_cli.output import Output

app = typer.Typer()


@app.command()
def doctor(
    model: options.Model = None,
    gpu_selftest: Annotated[
        bool,
        typer.Option(
            "--gpu-selftest", metavar="", help="Run the transfer checks on the GPU; fails where there is none."
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Check this machine: device, memory, disk speed, versions, terminal.

    Every line is ok, warn or fail. The exit code is 1 if something keeps finemoe from running.
    """
    from finemoe_cli.doctor import Finding, examine, subject

    output = Output(as_json=as_json)
    findings: list[Finding] = []
    with output.waiting("looking"):
        findings.extend(examine(subject(model)))
        if gpu_selftest:
            from finemoe_cli.gpu_selftest import gpu_selftest as selftest

            findings.extend(selftest())
    usable = all(finding.status != "fail" for finding in findings)
    if as_json:
        output.json({"ok": usable, "findings": [finding.to_dict() for finding in findings]})
    else:
        output.findings([(finding.status, finding.name, finding.text) for finding in findings])
    if not usable:
        raise typer.Exit(ExitCode.FAILURE)
