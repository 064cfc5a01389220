"""What several test files need: the server, a database for each test."""
