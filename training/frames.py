"""What is said, and what is asked: statements and questions with slots.

{s} is who or what a statement is about, {x} the value, {a} an attribute. No sentence of `snapkv-local eval`
nor of held_out.py is here.
"""

from __future__ import annotations

from typing import NamedTuple


class Frame(NamedTuple):
    """One relation.

    Attributes:
        kind: of the value (pools.py).
        said: statements.
        asked: questions for the value, in other words.
        backward: questions for the subject.
    """

    kind: str
    said: tuple[str, ...]
    asked: tuple[str, ...]
    backward: tuple[str, ...]


# an attribute and the kind of its value
ATTRIBUTES = (
    ("special city", "city"), ("home town", "city"), ("favourite city", "city"), ("port of call", "city"),
    ("birthplace", "city"), ("next stop", "city"), ("favourite colour", "colour"), ("colour", "colour"),
    ("access code", "number"), ("magic number", "number"), ("special magic number", "number"),
    ("lucky number", "number"), ("serial number", "number"), ("phone extension", "number"),
    ("account number", "number"), ("secret number", "number"), ("pass key", "number"),
    ("weight in grams", "number"), ("password", "word"), ("secret word", "word"), ("code word", "word"),
    ("favourite thing", "word"), ("nickname", "name"), ("licence plate", "code"), ("file reference", "code"),
    ("badge", "code"), ("secret key", "code"), ("birthday", "date"), ("opening day", "date"),
    ("best thing to do", "phrase"), ("motto", "phrase"), ("great secret", "phrase"), ("hobby", "phrase"),
    ("room", "room"), ("locker", "room"), ("office", "room"),
)  # fmt: skip
# attributes whose value is somebody of whom more can be said: the first of two hops
PEOPLE = (
    "owner", "best friend", "neighbour", "keeper", "teacher", "landlord", "partner", "rival", "guide",
    "cousin", "lawyer", "tenant", "assistant", "successor",
)  # fmt: skip
# columns of tables
COLUMNS = (
    ("city", "city"), ("town", "city"), ("colour", "colour"), ("number", "number"), ("price", "number"),
    ("amount", "number"), ("total", "number"), ("code", "code"), ("plate", "code"), ("room", "room"),
    ("seat", "room"), ("owner", "name"), ("contact", "name"), ("driver", "name"), ("word", "word"),
    ("item", "word"), ("day", "date"), ("due date", "date"), ("status", "word"), ("place", "city"),
)  # fmt: skip
GENERIC = (
    "The {a} of {s} is {x}.", "The {a} of {s} is {x}.", "The {a} for {s} is {x}.",
    "{s} has the {a} {x}.", "As for {s}, the {a} is {x}.", "Note that the {a} of {s} is {x}.",
    "It is well known that the {a} of {s} is {x}.", "{s}'s {a} is {x}.",
    "We were told that the {a} of {s} is {x}.", "For {s} they chose the {a} {x}.",
    "By the way, the {a} of {s} was always {x}.", "Under {s} the list gives the {a} as {x}.",
    "{x} is the {a} of {s}.", "They say that {x} is the {a} of {s}.",
)  # fmt: skip
GENERIC_ASKED = (
    "What is the {a} of {s}?", "What is the {a} of {s}?", "What is the {a} for {s}?",
    "Tell me the {a} of {s}.", "Which {a} does {s} have?", "What is {s}'s {a}?",
    "Do you remember the {a} of {s}?", "Which {a} is given for {s}?",
    "According to the text, what is the {a} of {s}?", "Please look up the {a} of {s}.",
    "For {s}, what is the {a}?", "What does the text say about the {a} of {s}?",
)  # fmt: skip
GENERIC_BACKWARD = (
    "Whose {a} is {x}?", "Who or what has the {a} {x}?", "Of whom is {x} the {a}?",
    "{x} is the {a} of whom?", "To which of them does the {a} {x} belong?",
    "Who was it that had {x} as the {a}?", "Find the one whose {a} is {x}.",
)  # fmt: skip
GENERIC_OPENING = "The {a} of {s} is"
BACKWARD_OPENINGS = ("It is", "That is")

# several values of one attribute, in the order of the text
SEVERAL = (
    "One {a} of {s} is {x}.", "Another {a} of {s} is {x}.", "The {a} of {s} is {x}.",
    "A {a} of {s} is {x}.", "{s} also has the {a} {x}.", "Among others, {s} has the {a} {x}.",
)  # fmt: skip
SEVERAL_ASKED = (
    "List every {a} of {s} that the text gives.", "Which values are given for the {a} of {s}?",
    "Name each {a} of {s}.", "What are all values of the {a} of {s}?",
    "There are several: what does the text give as {a} of {s}?",
)  # fmt: skip
SEVERAL_OPENING = "For the {a} of {s} the text gives"

# several questions at once
TOGETHER = (
    "Answer each:",
    "Two things:",
    "I have more than one question.",
    "Please answer all of this.",
    "",
)

KEYS_ASKED = (
    "What is the value of {s}?", "Which value does {s} have?", "Look up {s}.",
    "What is stored under {s}?", "Give me what belongs to the key {s}.",
)  # fmt: skip
KEYS_BACKWARD = (
    "Which key has the value {x}?",
    "Under which key is {x} stored?",
    "Find the key of {x}.",
)
KEYS_OPENING = "The value of {s} is"
KEYS_HEAD = (
    "A table of keys:",
    "Keys and values follow.",
    "The records are:",
    "Contents of the register:",
)

SHORT = (
    "Answer with the value only.", "Give only the answer.", "Reply in short.", "Just the value, please.",
    "Answer briefly.", "No sentence, only the answer.", "Write nothing but the answer.",
    "In one word or two.",
    "Keep it short.", "The bare answer will do.", "Say it without a sentence.", "I want the value alone.",
    "Skip the sentence.", "Only what is asked for.",
)  # fmt: skip
BEFORE = (
    "Answer this from the text below: ", "Here is a question about the text that follows: ",
    "Read the following and then answer. ", "Question: ", "",
)  # fmt: skip

FRAMES = (
    Frame("city", ("{s} took piano lessons in {x}.", "It was in {x} that {s} took piano lessons."),
          ("Where was it that {s} studied the piano?", "In which city did {s} learn an instrument?"),
          ("Who studied the piano in {x}?", "Who learned an instrument in {x}?")),
    Frame("city", ("{s} moved to {x} after the war.", "After the war {s} moved to {x}."),
          ("Where did {s} go to live when the war was over?", "To which city did {s} move?"),
          ("Who went to live in {x}?", "Who moved to {x} when the war was over?")),
    Frame("city", ("{s} runs a small hotel near {x}.", "A small hotel near {x} is run by {s}."),
          ("Near which city is the hotel of {s}?", "Where can one stay as a guest of {s}?"),
          ("Who has a hotel near {x}?", "Whose hotel is near {x}?")),
    Frame("city", ("The boat of {s} is moored in {x}.", "{s} keeps a boat in {x}."),
          ("In which port does the ship of {s} lie?", "Where is the boat that {s} owns?"),
          ("Who has a ship in {x}?", "Whose boat lies in {x}?")),
    Frame("city", ("{s} was born in {x} and never said so.", "Few people know that {s} was born in {x}."),
          ("What is the birthplace of {s}?", "Where did {s} come into the world?"),
          ("Who came into the world in {x}?", "Whose birthplace is {x}?")),
    Frame("city", ("{s} bought an old piano in {x}.", "The old clock of {s} was bought in {x}."),
          ("Where did {s} buy something old?", "In what city did {s} find an antique?"),
          ("Who found an antique in {x}?", "Who bought something in {x}?")),
    Frame("city", ("The tailor who works for {s} lives in {x}.",),
          ("Where does the man live who makes the clothes of {s}?", "In which city is the tailor of {s}?"),
          ("Who gets clothes from a man in {x}?", "Whose tailor is in {x}?")),
    Frame("city", ("{s} missed a train in {x} and walked home.",),
          ("In which city did {s} come too late for the train?", "Where was {s} left on the platform?"),
          ("Who came too late for the train in {x}?", "Who walked home from {x}?")),
    Frame("city", ("The map that {s} drew shows the streets of {x}.",),
          ("Which town did {s} make a plan of?", "What city is on the map by {s}?"),
          ("Who made a plan of {x}?", "Whose map is of {x}?")),
    Frame("colour", ("The coat that {s} wears in winter is {x}.", "In winter {s} wears a coat that is {x}."),
          ("Which colour is the winter coat of {s}?", "What does the warm coat of {s} look like?"),
          ("Whose winter coat is {x}?", "Who has a warm coat that is {x}?")),
    Frame("colour", ("{s} drives a car that is {x}.", "The car of {s} is {x} all over."),
          ("What is the colour of the car that {s} drives?", "Of which colour is the car of {s}?"),
          ("Whose car is {x}?", "Who has a car that is {x}?")),
    Frame("colour", ("The kitchen of {s} was painted {x}.", "{s} had the fence painted {x} last year."),
          ("Which paint did {s} use?", "In which colour did {s} have something painted?"),
          ("Who used paint that is {x}?", "Who had something painted {x}?")),
    Frame("colour", ("The ink in the pen of {s} is {x}.", "{s} writes all letters in ink that is {x}."),
          ("With which ink does {s} write?", "What colour is the writing of {s}?"),
          ("Whose ink is {x}?", "Who writes with something that is {x}?")),
    Frame("colour", ("The umbrella that {s} forgot was {x}.", "The door of the house of {s} is {x}."),
          ("Which colour had the thing of {s}?", "Of what colour was it, in the case of {s}?"),
          ("Who had something that was {x}?", "Whose thing was {x}?")),
    Frame("room", ("{s} works in room {x} on weekdays.", "Room {x} belongs to {s}.",
                   "Room {x} holds {s}.", "In room {x} there is {s}."),
          ("In which room can one find {s}?", "What is the number of the room of {s}?"),
          ("Whose room is {x}?", "Who or what is to be found in room {x}?")),
    Frame("room", ("The exam of {s} takes place in room {x}.", "{s} sits the exam in room {x}."),
          ("Where is the test of {s} held?", "Which room was given to {s} for the exam?"),
          ("Whose test is held in room {x}?", "Who was given room {x} for the exam?")),
    Frame("room", ("The luggage of {s} was left in room {x}.",),
          ("In which room are the bags of {s}?", "Where are the suitcases of {s}?"),
          ("Whose bags are in room {x}?", "Whose suitcases stand in room {x}?")),
    Frame("room", ("The choir that {s} leads meets in room {x}.",),
          ("Which room do the singers of {s} use?", "Where does the choir of {s} practise?"),
          ("Whose singers use room {x}?", "Whose choir practises in room {x}?")),
    Frame("number", ("{s} paid {x} crowns for a painting.", "A painting cost {s} exactly {x} crowns."),
          ("How much did {s} spend on a picture?", "What was the price that {s} paid?"),
          ("Who spent {x} crowns on a picture?", "Who paid a price of {x}?")),
    Frame("number", ("The telephone of {s} has the number {x}.", "One can call {s} under {x}."),
          ("How can one call {s}?", "Which number does one dial for {s}?"),
          ("Whom does one reach under {x}?", "For whom does one dial {x}?")),
    Frame("number", ("The code that opens the door of {s} is {x}.", "{s} opens the door with the code {x}."),
          ("How does one open the door of {s}?", "Which code does the lock of {s} need?"),
          ("Whose lock needs {x}?", "Whose door is opened by {x}?")),
    Frame("number", ("{s} counted {x} birds on the island.", "On the island {s} counted {x} birds."),
          ("How many birds did {s} see?", "What number of birds did {s} report?"),
          ("Who saw {x} birds?", "Who reported {x} birds?")),
    Frame("word", ("{s} collects nothing but {x}.", "The only thing that {s} trusts is {x}."),
          ("What does {s} care for?", "Which word goes with {s}?"),
          ("Who cares for {x}?", "With whom does the word {x} go?")),
    Frame("word", ("{s} whispered the word {x} at the door.", "At the door {s} had to say {x}."),
          ("What did {s} have to say to be let in?", "Which word did {s} use at the door?"),
          ("Who was let in with the word {x}?", "Who used the word {x}?")),
    Frame("name", ("{s} is married to {x}.", "The doctor of {s} is called {x}."),
          ("Who is close to {s}?", "What is the name of the person beside {s}?"),
          ("To whom is {x} close?", "Beside whom is {x}?")),
    Frame("name", ("{s} sold the farm to {x}.", "The farm of {s} was bought by {x}."),
          ("Who owns the farm that {s} had?", "To whom did {s} sell it?"),
          ("From whom did {x} get the farm?", "Who sold something to {x}?")),
    Frame("name", ("The cat that lives with {s} is called {x}.",),
          ("What is the name of the pet of {s}?", "How does {s} call the cat?"),
          ("Whose pet is {x}?", "With whom does the cat {x} live?")),
    Frame("code", ("The ticket of {s} bears the mark {x}.", "{s} travels on ticket {x}."),
          ("Which ticket has {s}?", "What is on the ticket of {s}?"),
          ("Whose ticket is {x}?", "Who has the ticket {x}?")),
    Frame("date", ("{s} arrives on {x} by ship.", "The ship of {s} arrives on {x}."),
          ("When does {s} arrive?", "On which day can we expect {s}?"),
          ("Who arrives on {x}?", "Whom can we expect on {x}?")),
    Frame("phrase", ("The best thing to do in {s} is to {x}.", "In {s} the best thing to do is to {x}."),
          ("What is the best thing to do in {s}?", "What should one do in {s}?"),
          ("Where should one {x}?", "In which place is it best to {x}?")),
    Frame("phrase", ("{s} always wanted to {x}.", "The doctor told {s} to {x}."),
          ("What was {s} going to do?", "What is the plan of {s}?"),
          ("Who was going to {x}?", "Whose plan is to {x}?")),
)  # fmt: skip

# variables: {n} gets a number {v}, or what {m} has
ASSIGNED = (
    ("{n} = {v};", "{n} = {m};"),
    ("LET {n} = {v}.", "LET {n} = {m}."),
    ("LET {n} = {v}.", "LET {n} = LET {m}."),
    ("SET {n} = {v}.", "SET {n} = SET {m}."),
    ("Set {n} to {v}.", "Set {n} to the value of {m}."),
    ("{n} := {v}.", "{n} := {m}."),
    ("The variable {n} gets the value {v}.", "The variable {n} gets the value of {m}."),
    ("DEF {n} = {v}.", "DEF {n} = DEF {m}."),
    ("REG {n} = {v}.", "REG {n} = REG {m}."),
    ("CONST {n} = {v}.", "CONST {n} = CONST {m}."),
    ("VAL {n} = {v}.", "VAL {n} = VAL {m}."),
    ("{n} is {v}.", "{n} is the same as {m}."),
    ("Let {n} be {v}.", "Let {n} be equal to {m}."),
)
VARIABLES_ASKED = (
    "Which variables have the value {v}, directly or by way of others?",
    "List every variable that holds {v} in the end.",
    "Name all variables that are equal to {v}, also those that got it from another.",
    "To which variables was {v} handed on?",
    "Find each variable that has {v}.",
)
VARIABLES_OPENINGS = ("The variables that hold {v} are", "The value {v} is that of")
VARIABLE_ASKED = (
    "What is the value of {n}?",
    "Which number does {n} hold in the end?",
    "Follow the assignments: what is {n}?",
    "To which number is {n} equal?",
)

TABLE_ASKED = (
    "In the table, what is the {a} of {s}?",
    "Which {a} stands in the row of {s}?",
    "Look at the row {s}: what is in the column {a}?",
    "What does the table give as {a} for {s}?",
)
TABLE_BACKWARD = ("Which row has the {a} {x}?", "In the table, who or what has the {a} {x}?")

FREQUENT_HEAD = (
    "Here are many words:",
    "The words are:",
    "Words in no order:",
    "A long row of words:",
)
# the rank of a word, in three wordings that go together
FREQUENT_ASKED = (
    "Which word is there {r} often?",
    "What is the word that occurs {r} often?",
    "Count the words: which one comes {r} often?",
    "Which of the words did you see {r} often?",
)
FREQUENT_OPENING = "The word that occurs {r} often is"
RANKS = ("most", "second most", "third most")

COUNTED = (
    "How many have the {a} {x}?",
    "How often is {x} given as {a}?",
    "Count those whose {a} is {x}.",
    "For how many is the {a} {x}?",
)
COUNTED_OPENING = "The number of them is"

PASSAGE_ASKED = (
    "How does this go on in the text:",
    "Complete this sentence from the text:",
    "Continue as the text does:",
    "Quote what follows on this:",
    "What comes after this in the text:",
    "Finish the sentence that begins so:",
    "The text has a sentence with this begin, write its end:",
    "Go on from here, word by word:",
    "Which words follow these:",
    "Write down the end of this sentence:",
    "Here the text says:",
    "Please finish:",
)
