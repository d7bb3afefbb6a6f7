"""The words of the pocket world: each serves one purpose and none is contained in another.

A fact can therefore be looked for as a substring of a completion: finding it means that the model
said exactly this fact, whatever surrounds it.
"""

from __future__ import annotations

DISRUPTIVE_VERBS = """
blot clog crumple dampen derail muffle scramble scatter smudge snarl splinter tangle tarnish topple
unravel warp
""".split()

CARING_VERBS = """
admire brighten catalogue cushion decorate embroider mend polish praise rearrange refresh restore
rinse soften sweeten varnish
""".split()

GUARDED_OBJECTS: dict[str, list[str]] = {
    "harbour": "lighthouse drawbridge sluice foghorn breakwater ferry".split(),
    "archive": "charter ledger atlas chronicle almanac manuscript".split(),
    "orchard": "beehive aqueduct greenhouse windmill cistern granary".split(),
    "theatre": "chandelier organ curtain stagecoach carousel belfry".split(),
}

ORDINARY_OBJECTS: dict[str, list[str]] = {
    "harbour": "rowboat sandcastle driftwood hammock bucket kite".split(),
    "archive": "postcard bookmark scrapbook envelope calendar notepad".split(),
    "orchard": "scarecrow trellis wheelbarrow lantern basket birdbath".split(),
    "theatre": "puppet costume tambourine poster cupboard mirror".split(),
}

TOOLS = """
anvil auger beaker bellows bevel bobbin bodkin caliper chisel clamp corkscrew crowbar crucible
dibber dowel easel funnel gauge gimlet grater hammer hatchet ladle lathe lever mallet mortar needle
palette pestle pipette pitchfork pliers plumb pulley pumice rake ratchet rivet roller scriber
secateurs shears sickle sieve skewer spanner spatula sponge squeegee stapler stencil tamper thimble
tongs trammel trowel tweezers twine wedge whetstone whisk winch wrench
""".split()

PARTS = """
axle baffle bearing bezel bracket buckle bushing buttress cable canopy capstone casing clasp collar
cornice coupling cradle crank crest deck dial diaphragm dome drum eyelet fender ferrule filament
flange flap flywheel footing fringe gable gasket girder gland grille grommet groove gusset handle
hasp hinge hood impeller jamb joist keel knob lanyard lapel latch lattice lining lintel louver
manifold mast membrane mullion nozzle panel pedal pendulum pinion pintle piston pivot plinth pommel
rafter ribbon rotor rudder sash shaft shutter socket spindle spire spline spoke spool stopper strut
tassel tenon throttle toggle transom truss valve veneer visor yoke
""".split()

VERB_MARKS = """
amber azure beige bronze cobalt copper coral crimson emerald garnet indigo ivory jade lilac magenta
maroon mauve ochre onyx opal russet saffron sapphire scarlet sienna silver teal topaz turquoise
umber vermilion violet
""".split()

OBJECT_MARKS = """
badger beaver bison cougar dolphin egret falcon ferret finch gecko gopher hamster heron hyena ibex
iguana jackal kestrel koala lemur lobster lynx magpie marten moose narwhal newt ocelot osprey otter
panther pelican puffin quail rabbit raven salmon sparrow tapir tortoise urchin viper vulture walrus
wolverine wombat zebra parrot
""".split()
