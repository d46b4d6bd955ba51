"""What tests start and speak to: scripted engines, tiny models, servers in processes of their own, stand-ins."""
