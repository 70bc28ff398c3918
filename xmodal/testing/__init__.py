"""What authors of components test with: small stand-ins (``tiny``) and contract checks (``contract``).

Part of the plugin API; it needs no test framework.
"""

from __future__ import annotations
