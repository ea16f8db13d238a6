"""`python -m ebmcore`."""

from ebmcore.cli import main

raise SystemExit(main())
