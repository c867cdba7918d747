"""What runs on Ray."""

import os

# Ray listens on every address of a machine, also where it is one that a command starts for itself,
# unless it believes that it cannot make clusters here. It reads this when it is imported.
if not os.environ.get("RAY_ADDRESS"):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
