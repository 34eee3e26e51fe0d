"""python -m campaigns"""

from __future__ import annotations

import sys

from campaigns.campaign import main

if __name__ == "__main__":
    sys.exit(main())
