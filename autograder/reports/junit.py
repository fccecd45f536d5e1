"""Stored results as JUnit XML, the form in which CI servers and IDEs read test reports.

A `testsuite` is one submission, a `testcase` one check. FAILED is a `failure`, BLOCKED is `skipped`, and whatever withholds
the grade is an `error`: it must not look like a pass. Points stand in `system-out`, with the rule that gave them.
For instructors: what hidden checks found is in it.

Not covered: grades. What the gradebook makes of the points is in `autograder export --format csv`.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

from autograder.errors import AutograderError
from autograder.finding import Outcome
from autograder.pages.feedback import points_text
from autograder.reports.explain import Explained, Explanation, why

__all__ = ["report"]

ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even as a reference: https://www.w3.org/TR/xml/#charsets"""


def report(name: str, graded: Mapping[str, Explanation | AutograderError]) -> bytes:
    """The report of an assignment. Who has no result is a suite too, with the reason as an error."""
    root = ET.Element("testsuites", name=_legal(name))
    for student, found in graded.items():
        suite = ET.SubElement(root, "testsuite", name=_legal(student))
        if isinstance(found, AutograderError):
            _withheld(suite, name, str(found))
        else:
            _submission(suite, found)
        cases = suite.findall("testcase")
        suite.set("tests", str(len(cases)))
        for count, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(count, str(sum(case.find(tag) is not None for case in cases)))
    for what in ("tests", "failures", "errors"):
        root.set(what, str(sum(int(suite.attrib[what]) for suite in root)))
    ET.indent(root)
    return b"%s\n" % ET.tostring(root, encoding="utf-8", xml_declaration=True)


def _submission(suite: ET.Element, found: Explanation) -> None:
    """Fill the suite of one submission."""
    result = found.result
    suite.set("time", _seconds(result.seconds))
    properties = ET.SubElement(suite, "properties")
    for name, value in (
        ("points", "withheld" if found.score.withheld else points_text(found.score.points)),
        ("max_points", str(found.score.max_points)),
        ("submission_hash", result.submission_hash),
        ("suite_hash", result.suite_hash),
        ("tier", result.tier),
    ):
        ET.SubElement(properties, "property", name=name, value=_legal(value))
    for each in found.checks:
        seconds = sum(finding.seconds for finding in each.findings)
        task = _legal(f"{result.assignment}.{each.check.task}")
        case = ET.SubElement(suite, "testcase", name=_legal(each.check.name), classname=task, time=_seconds(seconds))
        _outcome(case, each, result.tier)
        output = ET.SubElement(case, "system-out")
        output.text = f"{points_text(each.decision.points)} of {each.check.points} points: {each.decision.rule}."
    decided = {each.decision.withheld for each in found.checks}
    for reason in found.score.withheld:
        if reason not in decided:
            _withheld(suite, result.assignment, reason)


def _withheld(suite: ET.Element, name: str, reason: str) -> None:
    """What concerns the whole submission."""
    case = ET.SubElement(suite, "testcase", name="grade", classname=_legal(name), time="0")
    ET.SubElement(case, "error", type="WITHHELD", message=_legal(reason))


def _outcome(case: ET.Element, each: Explained, tier: str) -> None:
    """What went wrong, if anything did."""
    finding = each.findings[0] if len(each.findings) == 1 else None
    outcome = finding.outcome if finding else None
    if outcome is Outcome.PASSED and each.decision.withheld is None:
        return
    kind = {Outcome.FAILED: "failure", Outcome.BLOCKED: "skipped"}.get(outcome, "error") if outcome else "error"
    if each.decision.withheld:
        kind = "error"
    message = (finding.message if finding else "") or each.decision.withheld or each.decision.rule
    made = ET.SubElement(case, kind, type=outcome or "MISSING", message=_legal(message))
    made.text = _legal("\n".join([finding.sentence if finding else "", *why(each, tier)]).strip())


def _seconds(seconds: float) -> str:
    """Seconds without exponent, and what is no time as none: readers take digits and a point only."""
    return f"{seconds:.3f}" if 0 <= seconds < 1e9 else "0"


def _legal(text: str) -> str:
    return ILLEGAL.sub("\N{REPLACEMENT CHARACTER}", text)
