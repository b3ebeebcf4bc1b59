-- The kind of this server: some servers with PostgreSQL's protocol are a cluster of servers.
SELECT version(), to_regproc('yb_servers') IS NOT NULL
