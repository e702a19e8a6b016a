"""Makes this work tree importable in the environment that runs the script.

What an editable install does, without a build backend in the environments of the demo and the lowest versions.
"""

import sysconfig
from pathlib import Path

Path(sysconfig.get_path("purelib"), "fastapi_resumable.pth").write_text(f"{Path(__file__).resolve().parent.parent}\n")
