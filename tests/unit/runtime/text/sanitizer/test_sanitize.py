"""The sanitizer: fit to be spoken, harmless to content, the same on any chunking, at a constant cost."""

from __future__ import annotations

import itertools
import random
import re
import time
from itertools import pairwise

import emoji
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from runtime.text.sanitizer.emoticons import EMOTICONS
from runtime.text.sanitizer.emphasis import STAGE_LIMIT
from runtime.text.sanitizer.markup import DROPPED
from runtime.text.sanitizer.rules import RULES
from runtime.text.sanitizer.sanitize import Sanitizer, sanitize
from tests.harness.costs.growth import assert_linear

CONTENT = [
    "3.5", "example.com", "U.S.", "a/name", "a < b", "a < b and c > d", "-5", "50%", "it's", "2*3*4",
    "2 * 3 * 4", "2**10", "https://example.com/a_b/c?d=e&f=g#h", "snake_case_name", "C#", "#1 fan", "10:30",
    "AT&T", "R&D", "a & b", "a != b", "x<y and y>z", "if a<5 then", "I am 5'10\"", "e.g. this", "well-known",
    "5 - 3 = 2", "a = b", "f(x) = [1, 2]", "vector<int>", "C:\\Users\\me", "me@example.com", "$5.00", "and/or",
    "(yes)", "note: (a) one", "at :30", "1. one", "~5 minutes", "a | b", "你好,世界", "naïve café", "100 °C",
    "© 2026", "“quoted”", "क्‍ष", "a <3.5 b", "x; y", "1 + 1", "C++",
    "if x <3 then stop", "2 <3", "n <3, or", "while count <3 do", "Adobe XD.", "Adobe XD and", "it in XD", "f() and",
    "https://example.com/_private_/x_y_", "www.example.com/_a_/*b*c", "example.com/_a_?_b_=_c_", "me_@example.com",
    "https://example.com/~~u", "[Bob]: hello", "[Rank]: 3.5", "a[i][j]", "[1, 2][0]", "（好）", "“so”",
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_each_rule_does_what_its_example_says(rule):
    assert sanitize(rule.before) == rule.after


@pytest.mark.parametrize("text", CONTENT)
def test_content_comes_out_as_it_went_in(text):
    assert sanitize(f"Say {text} now") == f"Say {text} now"
    assert sanitize(f"Say {text}") == f"Say {text}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        (" \n ", ""),
        ("*waves* hello", "Hello"),
        ("Hi!\n\n*She leans in.* Well *whispers* hello.", "Hi! Well hello."),
        ("Sure. *leans closer and", "Sure."),
        ("*nods slow", ""),
        ("That was *very nice", "That was very nice"),
        ("It was *amazing*! I *never* said so.", "It was amazing! I never said so."),
        ("*This* is *it*, *you* know", "This is it, you know"),
        ("*smiling softly* you look well. *wink* Bye", "You look well. Bye"),
        ("Oh *giggles* you! *sonríe*\nHola", "Oh you! Hola"),
        ("***Really*** good", "Really good"),
        ("un**believ**able", "Unbelievable"),
        ("**Note:** *smiles* ok", "Note: ok"),
        ("1. **One**: yes\n2. __Two__: no", "1. One: yes 2. Two: no"),
        ("- a\n  - b\n* c\n+ d\n• e", "A b c d e"),
        ("## Title ##\ntext", "Title ## text"),
        ("```python\nprint('*a*')\n```\nDone", "print('*a*') Done"),
        ("use `__init__` here", "Use __init__ here"),
        ("see ![a cat](cat.png) and [b *c* d](https://e.f/g_(h))", "See a cat and b c d"),
        ("[not a link] (ok)", "[Not a link] (ok)"),
        ("<https://e.com>", "https://e.com"),
        ("H<sub>2</sub>O <!-- hidden > --> <think>ok</think>", "H2O ok"),
        ('a <a href="x">link</a> b', "A link b"),
        ("a <b and c> d", "A <b and c> d"),
        ("&lt;b&gt; &quot;x&quot; &#39;y&#39; a&nbsp;b &bogus; &amp", "<B> \"x\" 'y' a b &bogus; &amp"),
        ("&#128512; hi", "Hi"),
        ("Great 😀.", "Great."),
        ("Hi 👨‍👩‍👧‍👦 🇫🇷 🏴󠁧󠁢󠁥󠁮󠁧󠁿 1️⃣ #️⃣ *️⃣ ☀️ there", "Hi 1 there"),
        ("hi :) ok ;-) yes XD T_T ^_^ ¯\\_(ツ)_/¯ end :D", "Hi ok yes end"),
        ("Yes! :). No", "Yes!. No"),
        ("Thanks <3!", "Thanks!"),
        ("  hello ,world !  ", "Hello,world!"),
        ("'twas", "'Twas"),
        ("3 cats", "3 cats"),
        ("éa", "Éa"),
        ("ßa", "ßa"),
        ("e.g. <3.", "E.g. <3."),
        ("_me@example.com_ or __bold__ _x_", "me@example.com or bold x"),
        ("__bold__ _x_ word[the docs](https://e.com)", "Bold x wordthe docs"),
        ("Is 2 <3?", "Is 2 <3?"),
        ("If x <3 then stop.", "If x <3 then stop."),
        ("I love you <3. Thanks <3", "I love you. Thanks"),
        ("Adobe XD.", "Adobe XD."),
        ("so funny XD", "So funny"),
        ("haha xD bye", "Haha bye"),
        (
            "See [a b](https://e.com 'T') and [c](https://e.com (T)) and [d](<https://e.com/x y>).",
            "See a b and c and d.",
        ),
        ('See [a b][1], ![c d][], [e][2].\n\n[1]: https://e.com "T"\n[c d]: ./c.png\n[2]: <e.com>', "See a b, c d, e."),
        (f"See [a b](https://e.com/{'x' * 900}) and ![c](data:image/png;base64,{'A' * 5000}).", "See a b and c."),
        ("See [a b](https://e.com/x", "See a b"),
        ("so f[x](y", "So f[x](y"),
        ("[![alt](i.png)](https://e.com) [a [b] c](https://e.com)", "Alt a [b] c"),
        ("_https://e.com/a_b_ or **https://e.com/c_** here", "https://e.com/a_b or https://e.com/c_ here"),
        ("你好。*微笑* 我很好！*挥手*\n再见", "你好。 我很好！ 再见"),
        ("مرحبا؟ *يبتسم* كيف حالك. *يلوح*", "مرحبا؟ كيف حالك."),
        ("שלום! \u200f*מחייך*\u200f מה שלומך", "שלום! מה שלומך"),
        ("नमस्ते। *मुस्कुराता है* आप कैसे हैं", "नमस्ते। आप कैसे हैं"),
        ("გამარჯობა", "გამარჯობა"),
        ("ǆa", "ǅa"),
        ("Hi (😀) there (*smiles*), ok [:)] “🙂” （👍🏽）", "Hi there, ok"),
        ("((😀)) (😀 yes 😀) (f() :)) no", "(Yes) (f() :)) no"),
        ("call f() or ( ) now", "Call f() or ( ) now"),
        ("a " + "*" * 500 + " b", "A b"),
        ("-" * 500 + "\nx " + "`" * 100 + " *a*b", "X a*b"),
    ],
)
def test_what_comes_out(before, after):
    assert sanitize(before) == after


PIECES = [
    *CONTENT, *[rule.before for rule in RULES], *sorted(EMOTICONS),
    "*", "**", "***", "_", "__", "~~", "`", "```", "```py\n", "[", "](", ")", "![", "<", "<b", "<b>", "</p>", "<br/>",
    "<!--", "-->", "<a href='", "'>", "&", "&am", "&amp;", "&#x1F6", "00;", "😀", "👍🏽", "👩‍💻", "🇫", "🇷", "1️⃣",
    "\ufe0f",
    "\u200d", "\u20e3", "️⃣", "\n", "\r\n", " ", "  ", "\t", "- ", "# ", "> ", "---", "===", "|", "|---|", "\\", "\\*",
    "!", " !", " =", ",", " ,", "?", ".", ":", ":-", "X", "xD", "T", "_T", "o", "-_-", "*smirks*",
    "*she says", "*very*", "Yes. ",
    "[a b](https://e.com/" + "x" * 390, "x" * 60, "[a](/b(c(d",
    "(", "（", "）", "“", "”", "[a b][1]", "[1]: https://e.com 'T'\n", "https://e.com/_", "@", "/", "//", "www.",
    "XD", " XD.",
    "Adobe", " <3", "<3?", "if", " 2", "*" * 79, "_" * 81, "-" * 100, "\u200f", "。", "؟", "ა", " Ünï", "…", "…*",
    "i[0](x)", "~/x", "__init__.py", "_me@example.com", "。*微笑*我", "（*微笑*）", "e.g. <3.", "iPhone", "(*", "*)",
    "我",
    "word", " word", "a", "5", "é", "你好", "مرحبا", "नमस्ते", "\u00ad", "\u200b", "\x07",
]  # fmt: skip
MESSY = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=40).map("".join)


def by_character(text: str) -> str:
    sanitizer = Sanitizer()
    return "".join([sanitizer.feed(char) for char in text]) + sanitizer.finish()


def streamed(text: str, cuts: list[int]) -> str:
    sanitizer = Sanitizer()
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    parts = [sanitizer.feed(text[a:b]) for a, b in pairwise(edges)]
    return "".join([*parts, sanitizer.finish()])


@example(text="well;-](^_^)o_o", cuts=[])
@given(text=MESSY, cuts=st.lists(st.integers(0, 10_000), max_size=30))
@settings(max_examples=1500, deadline=None)
def test_any_chunking_gives_the_one_pass_form(text, cuts):
    whole = sanitize(text)
    assert streamed(text, cuts) == whole
    assert streamed(text, list(range(len(text)))) == whole


@pytest.mark.parametrize("delimiter", ["|-|-|", "|--|--|", "|:-:|:-:|", "|:--|--:|", "| - | :-: |", "|---|---"])
def test_a_delimiter_row_of_any_width_goes(delimiter):
    assert by_character(f"|A|B|\n{delimiter}\n|1|2|") == "A B 1 2"


@pytest.mark.parametrize(
    ("row", "spoken"),
    [
        ("|a - b|-5|", "A - b -5"),
        ("|5 -|a:b|", "5 - a:b"),
        ("|10:30|:-)|", "10:30 :-)"),
        ("|" + "-" * 400 + "|x|", "X"),
    ],
)
def test_what_stands_in_a_cell_beside_dashes_stays(row, spoken):
    assert by_character(row) == spoken


# A character of each kind that the sanitizer tells apart.
KINDS = "(:)*[]!<>&;_~`#-=|\\ \n.,aA13D/“”😀你\u200b^x\"'"


@pytest.mark.parametrize("before", ["", "a ", "|a|"])
def test_any_three_characters_give_the_same_text_one_by_one(before):
    texts = (before + "".join(chars) for chars in itertools.product(KINDS, repeat=3))
    assert [text for text in texts if by_character(text) != sanitize(text)] == []


@example(text="(: )")
@given(text=st.text(alphabet=KINDS, max_size=12))
@settings(max_examples=1500, deadline=None)
def test_a_few_characters_give_the_same_text_one_by_one(text):
    assert by_character(text) == sanitize(text)


@given(text=MESSY)
@settings(max_examples=500, deadline=None)
def test_what_comes_out_is_tidy(text):
    out = sanitize(text)
    assert out == out.strip()
    assert not any(char.isspace() and char != " " for char in out)
    assert "  " not in out
    assert not DROPPED & set(out)
    assert not [e for e in emoji.emoji_list(out) if e["emoji"] not in "©®‼⁉™ℹ"]
    assert " ," not in out
    assert " ?" not in out


BEGINNINGS = ["", '"', "“", "**", "__", "\n", "- ", "> ", "# ", "😀 ", "¿", "<p>"]
FIRST_WORDS = ["well", "well,", "and/or", "e.g.", "it's", "naïve", "привет", "well-known", "option(s)", "éa", "hm..."]
NO_FIRST_WORDS = [
    "i[0](x)", "i[0]", "~/x", "./x", "/usr/bin", "src/main.py", "c:\\Users", "__init__.py", "_private.py", "foo_bar",
    "example.com", "www.example.com/a", "https://example.com", "mailto:me@example.com", "me@example.com",
    "_me@example.com", "iPhone", "fooBar", "f(x)", "std::move", "$x", "--flag", "@me", "#tag", "x=1", "a.b.c", "a < b",
    "x = 5", "x²", "µm", "μm", "π", "$(pwd)", "localhost:80", "me+tag@example.com",
]  # fmt: skip


@given(beginning=st.sampled_from(BEGINNINGS), word=st.sampled_from(FIRST_WORDS), rest=MESSY)
@settings(max_examples=300, deadline=None)
def test_a_reply_that_begins_with_a_word_begins_with_a_capital(beginning, word, rest):
    first = next(char for char in sanitize(f"{beginning}{word} {rest}") if char.isalnum())
    assert first == word[0].title()


@given(beginning=st.sampled_from(["", "😀 ", "\n", "> "]), name=st.sampled_from(NO_FIRST_WORDS), rest=MESSY)
@settings(max_examples=300, deadline=None)
def test_a_reply_that_begins_with_a_name_of_code_or_an_address_keeps_it(beginning, name, rest):
    assert sanitize(f"{beginning}{name} {rest}").startswith(name)
    assert sanitize(f"Say {name} {rest}").startswith(f"Say {name}")


@pytest.mark.parametrize("opened", ["`", "```\n", "```py\n"])
def test_code_keeps_its_first_letter(opened):
    assert sanitize(f"{opened}print").startswith("print")


def test_a_capital_at_the_beginning_is_not_waited_for_and_a_small_letter_not_long():
    assert Sanitizer().feed("Well") == "Well"
    sanitizer = Sanitizer()
    assert sanitizer.feed("well") + sanitizer.feed(" then") == "Well then"
    assert Sanitizer().feed("w" * 100).startswith("W")


@pytest.mark.parametrize("ends", "。！？")
@pytest.mark.parametrize(("before", "after"), [("你好", "我很好"), ("はい", "そうです"), ("สวัสดี", "ครับ")])
def test_a_stage_direction_goes_without_spaces_around_it_and_nothing_else(before, ends, after):
    assert sanitize(f"{before}{ends}*微笑*{after}") == f"{before}{ends}{after}"
    assert sanitize(f"{before}（*微笑*）{ends}{after}") == f"{before}{ends}{after}"
    assert sanitize(f"*微笑*{after}") == after


# Between bars: what nobody wrote as markup, wherever it stands in a sentence.
SANE = r"""
3.5¦1,000¦1.000,50 €¦$5¦5 $¦£3¦¥100¦5%¦-5¦+5¦±5¦−5¦5–10¦1/2¦½¦x²¦10^6¦1e-9¦0x1F¦#5¦n°5¦5th¦10:30¦24/7¦9-to-5¦16:9
a < b¦a > b¦a <= b¦a >= b¦a == b¦a === b¦a != b¦a<b¦a>b¦x < 3 && y > 4¦a || b¦a | b¦!a¦!done¦~a¦a & b
1 < 2 < 3¦-1 < x < 1
<5¦>5¦< 5%¦>5 kg¦≤ 5¦a -> b¦a => b¦a <- b¦<->¦->¦=>¦a << 2¦a=b¦a+b¦a + b¦a += 1¦i++¦++i¦--i¦a*b¦a * b¦2*3*4¦2**10¦x**n
~/x¦~/.ssh/config¦./run.sh¦../x¦/usr/bin¦C:\Users\me¦\\server\share¦file.txt¦.env¦.gitignore¦a.b.c¦__init__.py¦__init__
__main__¦src/__init__.py¦src/_private_/x¦snake_case¦CONST_A¦my-file¦--flag¦-v¦-O2¦$HOME¦${HOME}¦$(pwd)¦%s
@me¦@user_name
#tag¦#tag_x¦C#¦C++¦.NET¦Node.js¦std::move¦a->b¦a.b()¦f()¦f(x, y)¦a[0]¦a[i][j]¦a[0](x)¦x[1:2]¦[1, 2]¦(a, b)¦{"a": 1}
{}¦[]
()¦list[int]¦Map<K, V>¦Vec<u8>¦a?.b¦a: b¦::¦a;b¦'a'¦"a"
_me@example.com¦me_@example.com¦first.last@example.co.uk¦me+tag@example.com¦mailto:me@example.com¦example.com/_a_
https://example.com/a_b_c?d=e&f=g#h¦https://example.com/a*b*c¦https://example.com/(a)¦localhost:8000¦127.0.0.1¦::1
git@github.com:a/b.git¦tel:+49-30-1234¦+49 30 1234¦(555) 123-4567¦user@host:~/dir
AT&T¦Q&A¦rock 'n' roll¦don't¦'tis¦'90s¦o'clock¦e.g.¦U.S.¦a.m.¦Ph.D.¦and/or¦w/o¦TCP/IP¦x-ray¦X¦XL¦OS X¦iOS¦iPhone¦macOS
O¦o
T¦D¦P¦4K¦CO₂¦™¦©¦°C¦5′10″¦§ 5¦†¦…¦...¦—¦–¦·¦µm¦π¦∞¦√2¦≈¦≠¦×¦÷¦→¦⇒¦★¦☆¦♪¦✓¦✗¦■¦●¦⅓¦Ⅳ¦ª
你好，世界¦「好」¦（好）¦《书》¦【注】¦100元¦A和B¦他说：“好”¦カタカナ¦〜¦10〜20¦안녕하세요¦привет¦«да»¦„ja“¦‚ja‘¦‹a›¦مرحبا¦١٢٣¦؟¦שלום
ש"ס¦नमस्ते¦क्‍ष¦สวัสดี¦გამარჯობა¦Հայ¦አማርኛ¦İstanbul¦ß¦naïve¦Łódź¦Việt
[Bob]¦[Bob]: hi¦[1]¦[1][2]¦[note]¦[...]¦(see [1])¦[a b]¦[ ]¦(a (b) c)¦((a))¦{{name}}¦<your name>¦a<3¦1<3¦5 > 3¦(a < b)
(8)¦1)¦a)
3:3¦C:/x¦:¦&¦5*¦~¦~5¦#¦-¦--¦=¦==¦<¦>¦<>¦^¦\¦/¦//¦.¦..¦;¦!=¦%¦@¦$
""".strip().replace("\n", "¦").split("¦")  # fmt: skip


@pytest.mark.parametrize("text", SANE)
def test_sane_text_comes_out_as_it_went_in_wherever_it_stands(text):
    for around in ("Say {} now", "Say {}.", "Say {}", "Say ({}) now", "Hi, {}, or {}; {}!", "“So {}” he", "Hi: {}\nNo"):
        before = around.replace("{}", text)
        after = before.replace("\n", " ")
        assert sanitize(before) == after
        assert streamed(before, list(range(len(before)))) == after


@given(
    parts=st.lists(st.sampled_from(SANE), min_size=1, max_size=5),
    between=st.sampled_from([" and ", ", ", " ", ". ", " (so) ", "; "]),
    cuts=st.lists(st.integers(0, 10_000), max_size=10),
)
@settings(max_examples=1000, deadline=None)
def test_sane_texts_lose_nothing_beside_one_another(parts, between, cuts):
    text = f"Say {between.join(parts)} end"
    assume(not MAKES_MARKUP.search(text))
    assert sanitize(text) == text
    assert streamed(text, cuts) == text


# What sane texts may be together: a tag, a heart, a face.
MAKES_MARKUP = re.compile(r"<[\w:/]*\s*/?>|(?<![\w(])<3|<3\b(?!,|\.)|\\ [*_`#|>~\[\]]|&\w+;")


LONELY = ["*", "_", "**", "~~", "😀", ":)", "=)", ":*", "<3", "*smiles*", "<b>", "&nbsp;", " "]


@given(st.lists(st.sampled_from(LONELY), min_size=1, max_size=4).map("".join))
@settings(max_examples=500, deadline=None)
def test_brackets_in_which_nothing_is_left_are_never_left(inside):
    assert "()" not in sanitize(f"Say ({inside}) now")


@given(text=st.text(alphabet=st.characters(categories=["L", "Nd"]) | st.sampled_from(" .'%$/"), max_size=200))
@settings(max_examples=300, deadline=None)
def test_plain_text_in_any_script_keeps_every_character(text):
    out = sanitize(text)
    kept = [char for char in text if not char.isspace() and char not in DROPPED]
    assert [c.upper() for c in out if c != " "] == [c.upper() for c in kept] or any(e in text for e in EMOTICONS)


@pytest.mark.parametrize(
    "held",
    [
        *[mark * 300 for mark in "*_~-+•=#`(“"],
        "[a b]: https://e",
        "*she ",
        "[text ",
        "[text](http://a",
        '<a href="',
        "<!-- ",
        "&am",
        "```py",
        "_",
        ":",
        "#",
        "|:",
    ],
)
def test_what_is_held_back_is_bounded(held):
    sanitizer = Sanitizer()
    sanitizer.feed("Hello. ")
    sanitizer.feed(held)
    filler = "word, " if not held.endswith(('"', "&am", "http://a")) else "word"
    for _ in range(400):
        sanitizer.feed(filler)
    assert len(sanitizer.held) + len(sanitizer.open) <= STAGE_LIMIT


def test_plain_words_come_out_at_once():
    sanitizer = Sanitizer()
    tokens = ["Well", ",", " this", " is", " it", ".", " Isn", "'t", " it", "?", " Yes", "!"]
    assert [sanitizer.feed(token) for token in tokens] == tokens


def test_the_cost_of_a_token_does_not_grow_with_the_reply():
    words = [
        "**bold**",
        " and",
        " *nods*",
        " then",
        " a",
        " <b",
        ">x</b>",
        " 3.5",
        ",",
        " 😀",
        "\n- item",
        " &amp;",
        " :)",
    ]
    draw = random.Random(0)

    def cost(length: int) -> float:
        tokens = [draw.choice(words) for _ in range(length)]
        best = float("inf")
        for _ in range(5):
            sanitizer = Sanitizer()
            began = time.thread_time()
            for token in tokens:
                sanitizer.feed(token)
            best = min(best, time.thread_time() - began)
        return best / length

    assert cost(8000) < 3 * cost(800)


@pytest.mark.parametrize(
    "unit",
    [
        "(",
        "“",
        "[a][",
        "[a]: ",
        "https://a_",
        "~",
        "#",
        "-",
        "=",
        "•",
        "\n-",
        "<3 ",
        " XD",
        "[",
        "*a ",
        "<b ",
        "&a",
        "`",
        "|",
        "* ",
        "word ",
        "[a](b) ",
        "&amp;",
        "<p>",
        "_",
        "*",
        "_a",
        " __a__.",
        " _a@b",
        "*微",
        "（*微*",
        "i[0](x) ",
    ],
)
def test_the_one_pass_form_is_linear(unit):
    def seconds(length: int) -> float:
        text = unit * (length // len(unit))
        began = time.thread_time()
        sanitize(text)
        return time.thread_time() - began

    seconds(10_000)
    assert seconds(80_000) < 24 * max(min(seconds(10_000) for _ in range(3)), 1e-3)


@pytest.mark.parametrize("mark", "*_~-+•=#`|>^:(")
def test_a_run_of_marks_is_linear_token_by_token(mark):
    def stream(text: str) -> None:
        sanitizer = Sanitizer()
        for char in text:
            sanitizer.feed(char)
        sanitizer.finish()

    assert_linear(stream, mark, characters=2_000)
    assert_linear(lambda text: stream("Hi " + text), mark, characters=2_000)


class Counted(Sanitizer):
    """Counts what goes through the machinery."""

    steps = 0

    def _step(self, text: str, at: int) -> int:
        self.steps += 1
        return super()._step(text, at)


@pytest.mark.parametrize(
    "tokens",
    [
        [" it", " wasn", "'t", ".", " So", ",", ' "', "is", " it", '?"', "!"],
        [" schön", " für", " Größe", " naïve"],
        [" привет", " как", "дела."],
        ["你好", "，", "今天", "天气", "。"],
        [" नमस्ते", " आप", "कैसे", "।"],
        [" مرحبا", " كيف", "،", "؟"],
        ["こんにちは", "、", "です", "か"],
        [" 안녕", "하세요"],
        ["สวัสดี", "ครับ"],
        [" it", "’s", " —", " so", "…"],
    ],
    ids=lambda tokens: tokens[0].strip(),
)
def test_text_in_any_script_costs_no_more_than_english(tokens):
    # A plain word is one match, in any script: nothing of it is looked at character by character.
    sanitizer = Counted()
    sanitizer.feed("Hi")
    begun = sanitizer.steps
    assert [sanitizer.feed(token) for token in tokens * 3] == tokens * 3
    assert sanitizer.steps == begun
