"""axe-core, which checks a page for accessibility, from the npm registry; a test without it skips."""

import shutil
import tarfile
from pathlib import Path

import pytest

from utils.data.packaged_models import Package, _fetch
from utils.frame.files import UserError

AXE = Package(
    name="axe-core",
    version="4.14.1",
    sha256="e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745",
    members={"package/axe.min.js": "axe.min.js"},
    licence="MPL-2.0",
)
GRAVE = ("serious", "critical")
_RUN = """
const done = arguments[arguments.length - 1];
axe.run(document, { resultTypes: ["violations"] }).then(
  (found) => done(found.violations.map((each) => ({
    impact: each.impact, id: each.id,
    nodes: each.nodes.slice(0, 3).map((node) => `${node.target}: ${node.failureSummary}`),
  }))),
  (error) => done([{ impact: "critical", id: String(error), nodes: [] }]),
);
"""


def axe_source(folder: Path) -> str:
    """The script, fetched into ``folder``; skips the test where npm or the registry is not there."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed: axe-core comes from its registry")
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder)]
    try:
        archive = _fetch(AXE, [*command, f"{AXE.name}@{AXE.version}"], folder, "*.tgz")
    except UserError as error:
        pytest.skip(str(error))
    [member] = AXE.members
    with tarfile.open(archive) as files:
        return files.extractfile(member).read().decode()


def grave_violations(driver, source: str) -> list[str]:
    """What axe finds serious or critical on the page that the browser shows, a line each."""
    driver.execute_script(source)
    found = driver.execute_async_script(_RUN)
    return [f"{each['id']}: {each['nodes']}" for each in found if each["impact"] in GRAVE]
