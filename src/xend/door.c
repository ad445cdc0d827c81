#include "xend/door.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <unistd.h>

#define PIECE 1000       /* of a ration: what one connection costs */
#define SILENT_MS 10000  /* to say something */
#define WAITING_MS 30000 /* to be let in */
#define LOOK_MS 50       /* at those who may be let in by now */

/* Per second, and at once after a while. A process for a connection costs some 5 ms. */
struct allowance {
	int64_t rate, most;
};

static const struct class
{
	unsigned waiting;          /* places for them */
	unsigned waiting_there;    /* for those of one address */
	struct allowance all, one; /* of all of them, and of one address */
} classes[DOOR_CLASSES] = {
	[DOOR_STRANGER] = {64, 16, {10, 32}, {2, 16}},
	[DOOR_FAMILIAR] = {64, 32, {100, 200}, {20, 64}},
};

#define FAMILIAR_MAX 64u

struct door_address door_address_of(const struct sockaddr *address)
{
	static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
	const struct sockaddr_in *four = (const void *)address;
	const struct sockaddr_in6 *six = (const void *)address;
	struct door_address result = {0};

	if (address->sa_family == AF_INET) {
		memcpy(result.bytes, mapped, 12);
		memcpy(result.bytes + 12, &four->sin_addr, 4);
	} else if (address->sa_family == AF_INET6) {
		memcpy(result.bytes, &six->sin6_addr, IN6_IS_ADDR_V4MAPPED(&six->sin6_addr) ? 16 : 8);
	}
	return result;
}

static void fill(struct ration *ration, const struct allowance *allowance, long long now_ms)
{
	int64_t most = allowance->most * PIECE, passed = now_ms - ration->at_ms;

	ration->at_ms = now_ms;
	/* A second's worth a thousand at a time: a millisecond's is the rate. */
	ration->left += passed > most ? most : passed * allowance->rate;
	if (ration->left > most)
		ration->left = most;
}

static struct caller *find(struct door *door, struct door_address address)
{
	for (unsigned i = 0; i < DOOR_CALLERS; i++)
		if (door->callers[i].used &&
			memcmp(&door->callers[i].address, &address, sizeof(address)) == 0)
			return &door->callers[i];
	return NULL;
}

/* A place that is free, or that of who has not been seen for longest and is not needed. */
static struct caller *place_for(struct door *door)
{
	struct caller *longest = NULL;

	for (unsigned i = 0; i < DOOR_CALLERS; i++) {
		struct caller *caller = &door->callers[i];

		if (!caller->used)
			return caller;
		if (!caller->waiting && !caller->familiar && (!longest || caller->seen_ms < longest->seen_ms))
			longest = caller;
	}
	return longest; /* there is one: fewer wait or are familiar than there are places */
}

static struct caller *caller_of(struct door *door, struct door_address address, long long now_ms)
{
	struct caller *caller = find(door, address);

	if (!caller) {
		caller = place_for(door);
		*caller = (struct caller){.address = address,
			.used = true,
			.ration = {classes[DOOR_STRANGER].one.most * PIECE, now_ms}};
	}
	caller->seen_ms = now_ms;
	return caller;
}

static void forget_familiar(struct door *door)
{
	struct caller *longest = NULL;
	unsigned count = 0;

	for (unsigned i = 0; i < DOOR_CALLERS; i++) {
		struct caller *caller = &door->callers[i];

		if (!caller->used || !caller->familiar)
			continue;
		count++;
		if (!longest || caller->seen_ms < longest->seen_ms)
			longest = caller;
	}
	if (count >= FAMILIAR_MAX)
		longest->familiar = false;
}

void door_familiar(struct door *door, struct door_address address, long long now_ms)
{
	struct caller *caller = caller_of(door, address, now_ms);

	if (caller->familiar)
		return;
	forget_familiar(door);
	caller->familiar = true;
	caller->ration.left = classes[DOOR_FAMILIAR].one.most * PIECE;
}

enum door_class door_class_of(const struct waiting *waiting)
{
	return waiting->caller->familiar ? DOOR_FAMILIAR : DOOR_STRANGER;
}

static void take_out(struct door *door, unsigned number)
{
	door->waiting[number].caller->waiting--;
	door->count--;
	memmove(&door->waiting[number], &door->waiting[number + 1],
		(door->count - number) * sizeof(door->waiting[0]));
}

static void turn_away(struct door *door, unsigned number)
{
	close(door->waiting[number].socket);
	take_out(door, number);
	door->turned_away++;
}

/* Of all of the class the oldest connection of the address that has most of them; of one address the oldest.
 */
static void make_room(struct door *door, enum door_class class, const struct caller *there)
{
	unsigned victim = DOOR_WAITING_MAX;

	for (unsigned i = 0; i < door->count; i++) {
		const struct waiting *waiting = &door->waiting[i];

		if (there ? waiting->caller != there : door_class_of(waiting) != class)
			continue;
		if (victim == DOOR_WAITING_MAX ||
			waiting->caller->waiting > door->waiting[victim].caller->waiting)
			victim = i;
	}
	if (victim < DOOR_WAITING_MAX)
		turn_away(door, victim);
}

static unsigned waiting_of(const struct door *door, enum door_class class)
{
	unsigned count = 0;

	for (unsigned i = 0; i < door->count; i++)
		count += door_class_of(&door->waiting[i]) == class;
	return count;
}

void door_enter(
	struct door *door, int socket, struct door_address address, const char *text, long long now_ms)
{
	struct caller *caller = caller_of(door, address, now_ms);
	enum door_class class = caller->familiar ? DOOR_FAMILIAR : DOOR_STRANGER;
	struct waiting *waiting;

	caller->waiting++; /* so that it is not taken for another's place, and counts where room is made */
	if (caller->waiting > classes[class].waiting_there)
		make_room(door, class, caller);
	else if (waiting_of(door, class) >= classes[class].waiting || door->count == DOOR_WAITING_MAX)
		make_room(door, class, NULL);
	/* Strangers who have become familiar may have left no room there, but for a moment. */
	if (door->count == DOOR_WAITING_MAX)
		turn_away(door, 0);
	waiting = &door->waiting[door->count++];
	*waiting = (struct waiting){.socket = socket, .since_ms = now_ms, .caller = caller};
	strncpy(waiting->text, text, sizeof(waiting->text) - 1);
}

bool door_look(struct door *door, unsigned number)
{
	char byte;
	ssize_t size = recv(door->waiting[number].socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

	if (size > 0 && !door->waiting[number].spoke) {
		door->waiting[number].spoke = true;
		return false;
	}
	if (size < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	/* It said something and left, or nothing: nobody is there who could be served. */
	close(door->waiting[number].socket);
	take_out(door, number);
	return true;
}

void door_expire(struct door *door, long long now_ms)
{
	for (unsigned i = door->count; i-- > 0;) {
		const struct waiting *waiting = &door->waiting[i];

		if (now_ms - waiting->since_ms >= (waiting->spoke ? WAITING_MS : SILENT_MS))
			turn_away(door, i);
	}
}

bool door_next(struct door *door, const bool open[DOOR_CLASSES], struct waiting *waiting, long long now_ms)
{
	unsigned best = DOOR_WAITING_MAX;

	for (unsigned class = 0; class < DOOR_CLASSES; class ++)
		fill(&door->rations[class], &classes[class].all, now_ms);
	for (unsigned i = 0; i < door->count; i++) {
		const struct waiting *one = &door->waiting[i];
		enum door_class class = door_class_of(one);

		fill(&one->caller->ration, &classes[class].one, now_ms);
		if (!one->spoke || !open[class] || door->rations[class].left < PIECE ||
			one->caller->ration.left < PIECE)
			continue;
		if (best == DOOR_WAITING_MAX || class > door_class_of(&door->waiting[best]) ||
			(class == door_class_of(&door->waiting[best]) &&
				one->caller->ration.left > door->waiting[best].caller->ration.left))
			best = i;
	}
	if (best == DOOR_WAITING_MAX)
		return false;
	*waiting = door->waiting[best];
	door->rations[door_class_of(waiting)].left -= PIECE;
	waiting->caller->ration.left -= PIECE;
	take_out(door, best);
	return true;
}

int door_patience(const struct door *door, long long now_ms)
{
	int patience = -1;

	for (unsigned i = 0; i < door->count; i++) {
		long long left = door->waiting[i].since_ms + SILENT_MS - now_ms;

		if (door->waiting[i].spoke)
			return LOOK_MS;
		left = left < 0 ? 0 : left;
		if (patience < 0 || left < patience)
			patience = (int)left;
	}
	return patience;
}

void door_close(struct door *door)
{
	while (door->count)
		turn_away(door, door->count - 1);
}
