"""What serving costs, measured side by side; README.md has the method, results.json the figures."""
