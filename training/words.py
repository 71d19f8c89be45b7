"""Words that facts are made of. None of `snapkv-local eval`'s names, cities and colours is among them."""

from __future__ import annotations

import random

CITIES = (
    "Rome Paris London Berlin Tokyo Chicago Toronto Mumbai Bangkok Jakarta Manila Seoul Osaka Dakar Accra "
    "Lagos Harare Lusaka Maputo Luanda Rabat Fez Algiers Tripoli Amman Beirut Damascus Baghdad Tehran Kabul "
    "Lahore Karachi Dhaka Colombo Hanoi Saigon Perth Darwin Brisbane Auckland Wellington Honolulu Seattle "
    "Portland Phoenix Dallas Houston Austin Memphis Atlanta Miami Orlando Tampa Newark Albany Buffalo "
    "Montreal Ottawa Winnipeg Calgary Vancouver Bogota Caracas Santiago Montevideo Asuncion Recife Salvador "
    "Manaus Cordoba Rosario Sucre Potosi Cusco Arequipa Guayaquil Panama Managua Tegucigalpa Belize Merida "
    "Puebla Monterrey Tijuana Marseille Lyon Toulouse Bordeaux Nantes Rennes Lille Rouen Dijon Brussels "
    "Antwerp Bruges Liege Rotterdam Utrecht Leiden Delft Hamburg Bremen Hanover Cologne Bonn Mainz Stuttgart "
    "Munich Augsburg Nuremberg Erfurt Weimar Graz Linz Innsbruck Basel Bern Lausanne Lugano Milan Genoa "
    "Venice Verona Padua Trieste Florence Siena Pisa Perugia Bari Palermo Catania Valletta Split Zagreb "
    "Ljubljana Budapest Szeged Bratislava Brno Krakow Gdansk Lublin Vilnius Kaunas Tallinn Tartu Helsinki "
    "Turku Stockholm Uppsala Malmo Gothenburg Copenhagen Aarhus Odense Reykjavik Glasgow Edinburgh Aberdeen "
    "Leeds York Bristol Exeter Cardiff Swansea Belfast Cork Galway Limerick Bilbao Granada Toledo Valencia "
    "Zaragoza Braga Coimbra Faro Sofia Varna Bucharest Cluj Odessa Kharkov Minsk Smolensk Moscow Kazan "
    "Samara Omsk Tomsk Tbilisi Yerevan Baku Ankara Izmir Bursa Adana"
).split()
COLOURS = (
    "crimson scarlet maroon amber ochre lemon lime olive teal cyan azure navy indigo lilac mauve magenta "
    "ivory cream charcoal bronze copper khaki emerald jade coral salmon peach rust plum lavender mint sand"
).split()
FIRST_NAMES = (
    "Lorenzo Maria Anton Beatrice Carlos Diana Elias Frida Gustav Helena Igor Joanna Kevin Laura Martin Nina "
    "Oscar Paula Ramon Sophie Tobias Ursula Victor Wanda Alice Bruno Clara Dennis Emma Felix Gloria Henry "
    "Irene Jacob Karen Leonard Monica Norman Olivia Peter Rachel Simon Tanya Vincent Walter Yvonne Adam "
    "Barbara Colin Doris Eric Fiona George Hannah Ian Julia Keith Linda Michael Nora Owen Philip Ruth Stefan "
    "Theo Valerie William Arthur Bridget Charles Deborah Edward Frances Gerald Heather Isaac Janet Kenneth "
    "Lucy Marcus Natalie Otto Pamela Robert Sarah Thomas Vera Amelia Boris Camilla David Elena Frank Gwen"
).split()
THINGS = (
    "harbour gate,cooling pump,north tower,old mill,blue van,main safe,steam engine,garden shed,night train,"
    "front desk,water tank,radio mast,cargo lift,wine cellar,reading room,boat house,stone bridge,upper lock,"
    "spare key,museum vault,school bus,weather station,printing press,fire door,ticket office,grain store,"
    "lighthouse,observatory,greenhouse,quarry,chapel organ,ferry,workshop,stable,archive,kitchen,server rack,"
    "parcel locker,signal box,toll booth,dry dock,paper mill,ice rink,post office,town hall,tram depot,"
    "second floor,east wing,control panel,storage unit,delivery bay,fishing hut,ski lift,glass factory"
).split(",")

# sentences of hay that are made of phrases
WHO = (
    "The clerk,An old sailor,My aunt,The night watchman,A student of law,The second baker,Our neighbour,"
    "The man with the dog,A young doctor,The bell founder,Nobody in the village,The postmistress,"
    "A travelling painter,The judge,Her brother,The crew of the tug,A girl in boots,The last guest,"
    "The mayor,One of the twins,The beekeeper,A retired captain,The woman at the counter,The organist"
).split(",")
DID = (
    "spoke about,counted,had no use for,wrote down,looked after,was fond of,asked about,carried away,"
    "remembered,had seen enough of,drew a picture of,complained about,looked for,never mentioned,ran past,"
    "read about,made a joke about,searched for,gave away,took no notice of,was tired of,photographed"
).split(",")
WHAT = (
    "the rusty anchor,a jar of honey,the long corridor,a pile of newspapers,the wet tent,two silver spoons,"
    "the empty market,a bundle of keys,the smell of coffee,the last tram,a box of nails,the river bank,"
    "the price of coal,a torn flag,the clock on the wall,a pot of soup,the new curtains,the broken fence,"
    "a row of poplars,the heavy trunk,the noise of the mill,some dry figs,the far side of the hill,"
    "a chessboard,the council meeting,a coil of rope,the first snow,the tin roof,a book of stamps"
).split(",")
WHEN = (
    "at noon,on the first of May,after the storm,for no good reason,with great care,in the dark,before the "
    "concert,once a week,until nobody listened,near the old well,without a hat,for the third time,"
    "as usual,by candle light,all through the winter,between meals,on the stairs,to everyone's surprise,"
    "while it snowed,at the wrong moment,in good time,because of the heat,under the arch,one last time"
).split(",")

# phrases as values
DO = (
    "eat,buy,paint,carry,visit,repair,study,watch,sell,hide,draw,wash,count,burn,follow,open".split(
        ","
    )
)
DO_WHAT = (
    "a warm sandwich,the small ferry,a green kite,the castle garden,three oranges,an old bicycle,the night "
    "sky,a wooden flute,the fish market,a bowl of rice,the tall ships,a red lantern,the quiet park,"
    "a pair of skates,the cliff path,fresh bread"
).split(",")
DO_WHERE = (
    "on a sunny day,by the river,with a friend,in the early morning,behind the station,under a tree,"
    "near the water,after the rain,on the hill,in the old quarter,at sunset,without any hurry"
).split(",")
MONTHS = (
    "January February March April May June July August September October November December"
).split()

_ONSETS = "b br c ch d dr f fl g gr h j k kl l m n p pr r s sh st t th tr v w z".split()
_VOWELS = "a e i o u ai ea ei io ou".split()
_ENDS = "n r s l m th x k nd rt ck".split()
_LOWER = "abcdefghijklmnopqrstuvwxyz"
_UPPER = "ABCDEFGHJKLMNPQRSTUVWXYZ"


def made_up(rng: random.Random) -> str:
    """A word that nobody has said, such as a name."""
    word = "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((1, 2, 2, 3)))
    )
    return (word + rng.choice(_ENDS)).capitalize()


def mutated(word: str, rng: random.Random) -> str:
    """The same with another first letter, and perhaps another one within."""
    letter = rng.choice(_LOWER)
    changed = letter + word[1:]
    if rng.random() < 0.5 and len(word) > 3:
        i = rng.randrange(1, len(word))
        changed = changed[:i] + rng.choice(_LOWER) + changed[i + 1 :]
    return changed.capitalize() if word[0].isupper() else changed


def number(rng: random.Random) -> str:
    """Of four to seven digits."""
    return str(rng.randrange(10**3, 10 ** rng.randint(4, 7)))


def code(rng: random.Random) -> str:
    """As on a number plate."""
    letters = "".join(rng.choice(_UPPER) for _ in range(rng.randint(1, 3)))
    digits = "".join(rng.choice("0123456789") for _ in range(rng.randint(2, 5)))
    return letters + rng.choice(("", "-")) + digits


def key(rng: random.Random) -> str:
    """Letters and digits, or hexadecimal digits, of which up to 32."""
    if rng.random() < 0.3:
        return f"{rng.getrandbits(128):032x}"[: rng.choice((8, 12, 16, 32))]
    pool = _LOWER + "0123456789" * rng.choice((1, 3))
    middle = "".join(rng.choice(pool) for _ in range(rng.randint(3, 8)))
    return rng.choice(_LOWER) + middle + rng.choice(_LOWER)


def variable(rng: random.Random) -> str:
    """A variable's name."""
    r = rng.random()
    if r < 0.4:
        return made_up(rng).upper()
    if r < 0.6:
        return made_up(rng).lower()
    if r < 0.8:
        return "".join(rng.choice(_UPPER) for _ in range(rng.randint(2, 5)))
    return rng.choice(_LOWER) + str(rng.randrange(1, 100))
