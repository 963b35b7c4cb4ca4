"""Who may do what: API keys, their scopes and quotas, and the trail of what was changed."""
