"""`python -m jobs VERB …`, the same verbs as the console script."""

from jobs.cli import main

raise SystemExit(main())
