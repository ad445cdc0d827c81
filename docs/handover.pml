/*
 * The hand-over of one guest by one ticket, as src/xend and src/carry do it:
 * two-phase commit with presumed abort.
 *
 * Two hosts, each with a durable record and volatile knowledge. Either daemon
 * may crash between any two steps and is started again; any message may be
 * lost, and either side may give the connection up while the other still reads
 * what was sent on it. Crashes and losses are bounded in number, so that "in
 * the end" means: once both sides stay up and the line holds. A crash may be
 * that of the host: its guest ends with the power, with it what only mattered for
 * the guest's sake, and only what was synced is still on the disk. Afterwards the
 * guest may come back to the source, by a hand-over of its own, which must not
 * meet what is left of this one.
 *
 * The destination may forget: its daemon finds an empty database when it comes up, or
 * one from before this hand-over, while the guest runs on. And the question about a
 * ticket may reach another host, since names lead elsewhere in time: one that is trusted,
 * has never heard of the ticket, and says so. The source sees from whom an answer
 * is: the destination's key and the identity of its store are in its record.
 *
 * scripts/check-model asks spin for:
 *   one_owner    never do both hosts run the guest
 *   no_loss      the source never deletes the guest before the destination owns it
 *   never_none   in the end exactly one host runs it, for ever (unless the power was cut,
 *                or the destination has forgotten: then a person has to look)
 *
 * BY_NAME is what was done before answers were tied to a host: whoever answers counts,
 * and who does not know the ticket will never run the guest. It has two owners, as
 * soon as there is another host or the destination forgets.
 */
mtype = { OFFER, STATE, RECEIVED, COMMIT, RUNNING };	/* on the connection */
mtype = { OWNED, REFUSED, NONE, OWNER, COMMITTED, GONE, RECEIVING };	/* durable records and answers; as an answer
									   NONE is "unknown" */
mtype = { DEST, OTHER };	/* who answers */

#ifndef CRASHES
#define CRASHES 2
#endif
#define LOSSES 2
#ifndef POWER_CUTS
#define POWER_CUTS 0
#endif
#ifndef FORGETS
#define FORGETS 0
#endif
#ifndef MISLED	/* questions that reach the other host */
#define MISLED 1
#endif

/* Durable: what each store says of the ticket. */
mtype source_record = OWNER;
mtype dest_record = NONE;

/* Real: whether the guest's vCPUs run there. Guest processes survive a crash of the daemon. */
bool source_runs = true;
bool dest_runs = false;

/* Durable: whether the guest is in the list of domains there. */
bool source_has = true;
bool dest_has = false;

byte crashes = CRASHES;
byte losses = LOSSES;
byte power_cuts = POWER_CUTS;
byte forgets = FORGETS;
byte misled = MISLED;

/* What was, whoever has forgotten it since. */
bool dest_owned = false;
bool dest_forgot = false;

chan forth = [2] of { mtype };	/* the migration's connection */
chan back = [2] of { mtype };
chan ask = [1] of { bit };	/* a later connection, for questions */
chan answer = [1] of { mtype, mtype };	/* from whom, what */

/* A send that the network may swallow. */
inline send(line, message)
{
	if
	:: line!message
	:: atomic { losses > 0 -> losses-- }
	fi
}

inline answered(who, what)
{
	if
	:: answer!who,what
	:: full(answer)	/* who asked has left, or hears another first */
	:: atomic { losses > 0 -> losses-- }
	fi
}

/* Of the daemon alone, or of the whole host. */
inline source_crashes()
{
	crashes--;
	if
	:: power_cuts > 0 ->
		power_cuts--;
		source_runs = false; source_has = false; source_record = NONE;
		do	/* whoever asked is no more */
		:: nempty(ask) -> ask?_
		:: nempty(answer) -> answer?_,_
		:: empty(ask) && empty(answer) -> break
		od
	:: true
	fi
}

inline dest_crashes()
{
	crashes--;
	if
	:: power_cuts > 0 -> power_cuts--; dest_runs = false; dest_has = false
	:: true
	fi;
	if
	:: forgets > 0 ->	/* a guest that runs is found again, its hand-over is not */
		forgets--;
		dest_record = NONE; dest_has = dest_runs; dest_forgot = true
	:: true
	fi
}

active proctype Source()
{
	mtype reply, from;
	bool tried = false;	/* one attempt a ticket */
	bool returned = false;

start:	/* the daemon comes up and does what its record says */
	if
	:: source_record == OWNER -> source_runs = true
	:: source_record == COMMITTED -> goto in_doubt
	:: source_record == GONE && source_has -> goto gone
	:: source_record == GONE && !source_has -> source_record = NONE; goto done	/* dropped: it may come back */
	:: source_record == NONE -> goto done
	fi;

	if
	:: tried -> goto done	/* aborted: it runs here */
	:: else -> tried = true
	fi;

	send(forth, OFFER);
	if
	:: atomic { crashes > 0 -> source_crashes() }; goto start
	:: source_runs = false	/* the last round: paused */
	fi;
	send(forth, STATE);
	if
	:: back?RECEIVED
	:: atomic { crashes > 0 -> source_crashes() }; goto start
	:: goto start	/* gave up waiting: presumed abort, runs on */
	fi;
	source_record = COMMITTED;
	if
	:: atomic { crashes > 0 -> source_crashes() }; goto start
	:: skip
	fi;
	send(forth, COMMIT);
	if
	:: back?RUNNING -> goto gone
	:: atomic { crashes > 0 -> source_crashes() }; goto start
	:: goto in_doubt	/* the line broke after COMMIT */
	fi;

in_doubt:
	do
	:: atomic { crashes > 0 -> source_crashes() }; goto start
	:: nempty(answer) ->
		answer?from,reply;
#ifdef BY_NAME
		break
#else
		if
		:: from == DEST && !dest_forgot && reply != NONE -> break	/* its key, its store, and it knows */
		:: else	/* no answer */
		fi
#endif
	:: empty(ask) && empty(answer) -> send(ask, 0)
	od;
	if
	:: reply == OWNED
	:: else -> source_record = OWNER; goto start
	fi;

gone:
	source_record = GONE;
	assert(dest_owned);	/* no_loss */
	if
	:: atomic { crashes > 0 -> source_crashes() }; goto start
	:: source_runs = false; source_has = false
	fi;
	if
	:: atomic { crashes > 0 -> source_crashes() }; goto start
	:: source_record = NONE
	:: skip	/* the store failed to drop it */
	fi;
done:
end:	do
	:: atomic { crashes > 0 -> source_crashes() }; goto start
	:: atomic {	/* a hand-over back; whoever is put on the list here, his earlier departures are dropped */
		!source_has && dest_has && dest_runs && !returned ->
		dest_runs = false; dest_has = false;
		source_record = NONE; source_has = true; source_runs = true;
		returned = true
	   }
	od
}

active proctype Dest()
{
	mtype knows = NONE;	/* volatile: NONE, OFFER (incoming), RECEIVED */

start:	/* the daemon comes up: an incoming guest is ended and refused, an owned one runs */
	knows = NONE;
	if
	:: dest_record == RECEIVING -> dest_record = REFUSED
	:: else
	fi;
	if
	:: atomic { dest_has -> dest_runs = true }
	:: else
	fi;
end:	do
	:: knows == NONE && dest_record == NONE && nempty(forth) ->
		if
		:: forth?OFFER -> dest_record = RECEIVING; knows = OFFER	/* synced: before RECEIVED is said */
		:: forth?STATE	/* of a connection that a crash here has cut: nobody listens */
		:: forth?COMMIT
		fi
	:: knows == OFFER && nempty(forth) ->
		if
		:: forth?STATE -> knows = RECEIVED; send(back, RECEIVED)
		:: forth?COMMIT -> knows = NONE; dest_record = REFUSED	/* not in this order: cut off */
		fi
	:: knows == RECEIVED && nempty(forth) ->
		forth?COMMIT;
		atomic { dest_record = OWNED; dest_has = true; dest_owned = true };
		if
		:: atomic { crashes > 0 -> dest_crashes() }; goto start
		:: dest_runs = true
		fi;
		knows = NONE;
		send(back, RUNNING)
	:: knows != NONE -> knows = NONE; dest_record = REFUSED	/* the line is silent or broken: refuse for ever */
	:: ask?_ ->
		if
		:: dest_record == OWNED -> answered(DEST, OWNED)
#ifdef BY_NAME
		:: dest_record == NONE -> dest_record = REFUSED; answered(DEST, REFUSED)
#else
		:: dest_record == NONE -> answered(DEST, NONE)	/* not recorded: the next answer is the same */
#endif
		:: dest_record == RECEIVING || dest_record == REFUSED ->
			knows = NONE;	/* the incoming guest is ended first */
			dest_record = REFUSED;
			answered(DEST, REFUSED)
		fi
	:: atomic { crashes > 0 -> dest_crashes() }; goto start
	od
}

/* Another host that the name leads to for a while. */
active proctype Other()
{
end:	do
	:: atomic { misled > 0 && nempty(ask) -> ask?_; misled-- }; answered(OTHER, NONE)
	od
}

#ifdef ENDLESS
/* Time goes on when nobody has anything to do: spin's fairness looks at runs without end only. */
active proctype Time()
{
	bool tick;

end:	do
	:: tick = !tick
	od
}
#endif

ltl one_owner { [] !(source_runs && dest_runs) }
ltl never_none { <> [] (source_runs || dest_runs) }
