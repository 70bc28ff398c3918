"""For tests of components: contract checks (``contract``) and small stand-ins (``tiny``).

Part of the plugin API; it needs no test framework.
"""

from __future__ import annotations
