"""What both adapters for frameworks are made of."""
