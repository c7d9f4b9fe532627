"""Run a program that a model wrote, in a subprocess with limits: time, memory, no files, no processes, no network.

For programs that are wrong, not for ones that are out to get you: a container is the place for those.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from recr1_lite.errors import RecR1Error

# Refused from inside: what would change files, start a process, or reach another machine (PEP 578 audit events).
GUARD = '''import sys as _sys
def _guard(event, details):
    if event == "open":
        mode, flags = str(details[1] or ""), int(details[2] or 0)
        if any(letter in mode for letter in "wax+") or flags & 3:
            raise PermissionError("a generated program may not write files")
    elif event in _REFUSED or event.partition(".")[0] in {"subprocess", "socket", "shutil", "ctypes", "_posixsubprocess"}:
        raise PermissionError("a generated program may not use " + event)
_REFUSED = {"os." + name for name in ("remove rename rmdir mkdir system exec fork forkpty posix_spawn spawn kill killpg "
            "chmod chown link symlink truncate putenv chdir utime setxattr removexattr").split()}
_sys.addaudithook(_guard)
del _sys
'''


def run_program(source: str, seconds: float = 5.0, memory: int = 1_000_000_000) -> str:
    """"passed" where the program ran to its last line, else "failed", or "stopped" after `seconds`.

    It runs with an empty environment in an empty folder that is removed. memory: bytes of address space. Raises
    RecR1Error on a system without these limits (Windows).
    """
    if os.name != "posix":
        raise RecR1Error("generated code is executed only under Linux or macOS, where its process can be limited; run "
                         "without execute_code there")
    verdict = 64 + secrets.randbelow(50)  # a program that leaves early cannot know it
    program = f"{GUARD}\n{source}\nimport os as _os\n_os._exit({verdict})\n"
    with tempfile.TemporaryDirectory(prefix="recr1-code-") as folder:
        path = Path(folder) / "program.py"
        path.write_text(program, encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(path)], cwd=folder, env={}, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            preexec_fn=lambda: _limit(seconds, memory))
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return "stopped"
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
            process.wait()
    return "passed" if code == verdict else "failed"


def _limit(seconds: float, memory: int) -> None:
    """In the child, before Python starts there."""
    import resource

    wanted = {"CPU": int(seconds) + 1, "AS": memory, "FSIZE": 0, "CORE": 0, "NPROC": 0, "NOFILE": 32}
    for name, value in wanted.items():
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
        except (AttributeError, ValueError, OSError):  # a system that lacks one has the others
            pass
