"""Records of finished runs, their statistics, tables and figures."""
