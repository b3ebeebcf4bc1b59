-- What kind of server this is: some that speak PostgreSQL's protocol are many servers in one.
SELECT version(), to_regproc('yb_servers') IS NOT NULL
