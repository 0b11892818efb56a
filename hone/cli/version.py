"""`hone version`: the versions that a result depends on, read without importing the libraries."""

from hone.cli.arguments import AsJson
from hone.cli.output import print_json


def version(as_json: AsJson = False) -> None:
    """Print the versions that matter.

    \b
    Example:
      hone version
      hone version --json
    """
    from hone.runs import installed_versions

    versions = installed_versions()
    hone_version = versions.pop("hone")
    if as_json:
        print_json({"hone": hone_version, **versions})
        return
    print(f"hone {hone_version}")
    for package, installed in versions.items():
        print(f"  {package} {installed or 'not installed'}")
