SELECT count(*) FROM builds WHERE state IN ('queued', 'running')
