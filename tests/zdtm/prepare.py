"""Edits CRIU's test suite after it was unpacked: `prepare.py SUITE`, the directory `test` of CRIU's source.

zdtm.py and the makefiles are changed as little as possible, each change with its reason. A text that is not there
exactly once ends the program: another version of the suite has to be looked at first.
"""

from __future__ import annotations

import sys
from pathlib import Path

# In place of `import pycriu`.
_LATE = """class _Late:
    def __getattr__(self, name):
        import pycriu
        return getattr(pycriu, name)


crpc = _Late()
"""
_WAITED = (
    "            if status != 0:\n                self.__fail = True\n                failed_flavor"
)
_SAYS_RESULT = """            seconds = time.time() - sub['start']
            print("zdtm-result %s %s %.1f" % (sub['name'], 'fail' if status else 'pass', seconds), flush=True)
"""
_SKIPS = """        print("Skipping %s (%s)" % (name, reason))
"""
_SAYS_SKIP = """        print("zdtm-result %s skip 0" % name, flush=True)
"""
_READS_LIST = """            torun = map(lambda x: x.strip(), fd)
        opts['keep_going'] = False
"""
_PATH = """            env['PATH'] = "/usr/local/sbin:"""

# The text in zdtm.py, and what takes its place.
_EDITS = (
    # Only reports need it, and it is not a part of Python.
    ("import yaml\n", ""),
    # Takes seconds in an emulated machine, and every test would import it twice. Only `--rpc` uses it.
    ("import pycriu as crpc\n", _LATE),
    # It counts pages in the directory of images, where the drop-in leaves one sealed file.
    ("    def check_pages_counts(self):\n", "    def check_pages_counts(self):\n        return\n"),
    # `--from`: the list was read after its file had been closed, and the first failure ended the run.
    (_READS_LIST, "            torun = list(map(lambda x: x.strip(), fd))\n"),
    # What became of each test, in one line.
    (_WAITED, _SAYS_RESULT + _WAITED),
    (_SKIPS, _SKIPS + _SAYS_SKIP),
    # What the tests become. A machine whose root lacks CAP_SYS_RESOURCE cannot dump processes of others.
    ('"18943"', "os.environ.get('ZDTM_TEST_UID', '18943')"),
    ('"58467"', "os.environ.get('ZDTM_TEST_GID', '58467')"),
    ('"27495 48244"', "os.environ.get('ZDTM_TEST_GROUPS', '27495 48244')"),
    # In namespaces they get a PATH without our `make`.
    (_PATH, _PATH.replace('= "', "= os.environ['ZDTM_BIN'] + \":")),
    # An emulated machine is slow.
    (
        "            timeout=60):\n",
        "            timeout=int(os.environ.get('ZDTM_SECONDS', '60'))):\n",
    ),
    # The kernel's pool of huge pages belongs to the machine, not to these tests.
    ("    orig_hugepages = set_nr_hugepages(20)\n", ""),
    ("    set_nr_hugepages(orig_hugepages)\n", ""),
)


def edit(text: str) -> str:
    for old, new in _EDITS:
        if text.count(old) != 1:
            sys.exit(f"prepare: zdtm.py has {text.count(old)} of {old!r}, not one")
        text = text.replace(old, new)
    return text


def rules(text: str) -> str:
    """Makefile.inc without its files of dependencies, which are made one after another, and without -Werror."""
    if " -Werror " not in text or "%.o: %.c | %.d\n" not in text or "\n-include " not in text:
        sys.exit("prepare: Makefile.inc is not the one that is known here")
    text = text.replace(" -Werror ", " ").replace("%.o: %.c | %.d\n", "%.o: %.c\n")
    return text.replace("\n-include ", "\n# ")


def main() -> None:
    suite = Path(sys.argv[1])
    for path, change in ((suite / "zdtm.py", edit), (suite / "zdtm" / "Makefile.inc", rules)):
        path.write_text(change(path.read_text()))
    assembly = suite.parent / "include" / "common" / "asm"
    if not assembly.is_symlink():
        assembly.symlink_to("arch/x86/asm")


if __name__ == "__main__":
    main()
