"""Ten turns of one conversation, fixed, so that runs can be compared."""

TURNS = (
    "Hey, I just got home. What a day.",
    "My manager moved our deadline forward by two weeks and told us in the lift.",
    "I did stay calm, though I said I needed to think about it before promising anything.",
    "What would you have said to him?",
    "Maybe. By the way, I cooked something new tonight, a lentil soup with lemon.",
    "It needed more salt, but my sister had two bowls.",
    "She is moving to Lisbon in March. I am happy for her and a bit lost, honestly.",
    "Do you think long distance changes how close people are?",
    "That helps. I might plan a trip for the spring.",
    "What was the first thing I told you tonight?",
)
