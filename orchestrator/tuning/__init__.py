"""A sweep: plan, searcher, scheduler, records, leaderboard, tracking."""
