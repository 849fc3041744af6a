"""What runs after tuning: the classify script, the service, the runners."""
