"""The images, built and run for real on a stand-in base."""
