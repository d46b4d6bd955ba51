"""What is deployed and with which settings: the models, the classifier, the metrics.

May import `wire` and below.
"""
