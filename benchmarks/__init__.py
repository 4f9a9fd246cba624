"""What serving costs, compared with the original lab's app. README.md has the method, results.json the figures."""
