"""What is deployed and with which settings: the models, the classifier, the figures that are measured.

May import `wire` and below.
"""
