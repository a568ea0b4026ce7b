package store

import (
	"hash/crc32"
	"strconv"
	"strings"
)

// Partitions is how many parts the keys are cut into. It is written to Redis at first start and never changes: the
// partition is part of every key of a call, so that each script touches one slot, on one Redis and on a cluster alike.
const Partitions = 64

// format is the version of everything below; another one in Redis refuses to start.
const format = "1"

// Every key, with its Redis type. `{p}` is the hash tag of the call's partition.
const (
	keyMeta         = "cr:meta"         // HASH format, partitions
	keyDestinations = "cr:destinations" // SET of every destination that was ever used
	keyReplicas     = "cr:replicas"     // ZSET state process -> last heartbeat (ms)
	channelWake     = "cr:wake"         // PUBLISH of members that became due, see dispatch
	channelJournal  = "cr:journal"      // PUBLISH of journal entries, for the live tail of other state processes
	keySpools       = "cr:spools"       // HASH ingress process -> when it reported (ms), a blank, serialised ReportRequest
	keyStandings    = "cr:standings"    // HASH destination TAB consumer process -> when it described itself (ms), a blank, serialised Standing
	keyMaintenance  = "cr:maintenance"  // HASH destination -> serialised Maintenance
	keyComparison   = "cr:comparison"   // STRING serialised Accounting: the last comparison of counters and journals
	keyAlarms       = "cr:alarms"       // HASH alarm -> since (ms), so that one state process tells of it
)

// keyHold is a HASH per destination: epoch, total (ms under finished holds), and while it is held reason, since, probe.
func keyHold(destination string) string { return "cr:h:" + destination }

// keyShares is a HASH per destination: sending process -> "instance seen share limit wanted" (share.lua). It ends by itself.
func keyShares(destination string) string { return "cr:s:" + destination }

// keyCall is a HASH, everything stored of a call. Its fields:
//
//	v          id of the commit that wrote it         r   serialised Record
//	j1, j2...  pieces of journal (serialised Journal) jn  how many, jb how many bytes, jx bytes that did not fit
//	i:<input>  outcome of each input ever committed,  o   open deliveries and timers; 0 starts the time to live
//	           and where its request is counted (lua/lib.lua)
//	m:<name>   what an entry brings: a message to another call (name ">" and its id), or a reply (name "=" and the delivery)
//	<n>w       its result is an input of the call     p   retention (ms) that its rules asked for
//	e:<name>   since when an entry cannot be processed (ms)
//	t:<name>   id of the commit that set the timer    q:<dest>  numbers of the deliveries that still have to go out, in order
//	<n>        serialised Delivery, never changed     <n>s  state letter      <n>a  attempts    <n>u  uncertain; 0 = a person looked since
//	<n>t       token of its last lease                <n>f  final since (ms)  <n>z  paused (ms) <n>y  reason
//	<n>b       a person retried it then (ms)          a:<n> where a delivery is counted that no request of the call caused
func keyCall(call string) string { return tag(call) + "c:" + call }

// keyDue is a ZSET of a destination in the call's partition: members due at a time. A member is a call (its head
// delivery is due) or, for `rules`, a call, a tab and the name of a timer.
func keyDue(p int, destination string) string { return tags[p] + "d:" + destination }

// keyLeases is a HASH of a destination in a partition: member -> token.
func keyLeases(p int, destination string) string { return tags[p] + "l:" + destination }

// keyLetters is a ZSET of a destination in a partition: "call TAB number" of what ended dead, expired or asked.
func keyLetters(p int, destination string) string { return tags[p] + "x:" + destination }

// keyWritten is a STRING, always empty, in the slot of another key: the write that WAIT counts from, see acked.
func keyWritten(beside string) string {
	if end := strings.IndexByte(beside, '}'); end >= 0 {
		return beside[:end+1] + ":w"
	}
	return "{" + beside + "}:w"
}

// keyAccount is a HASH per connected account: v version, b serialised Account, x end of its access token (ms, absent = none).
// All accounts share one slot, so that the script that writes one keeps the index too.
func keyAccount(id string) string { return "cr:{accounts}:a:" + id }

// keyAccounts is a SET of the ids of all accounts.
const keyAccounts = "cr:{accounts}:ids"

// keyAccountLease is a STRING, the token of the process that renews an account's credentials; it ends by itself.
func keyAccountLease(id string) string { return "cr:{accounts}:l:" + id }

// keyToken is a STRING, the request id that a one-time token belongs to; it ends by itself.
func keyToken(token string) string { return "cr:token:" + token }

// keyLimit is a ZSET per limit: token of each place that is taken, the empty one of a pause -> when it ends (us); it ends by itself.
func keyLimit(name string) string { return "cr:places:" + name }

// keyCards is a HASH per partition, all caller cards that are open: "call TAB leg" -> serialised CallCard. Commit alone changes
// it, in the step that changes the call, so it cannot disagree with the calls.
func keyCards(p int) string { return tags[p] + "k" }

// keyCounters is a HASH per partition, the accounting: <hour><bucket letter> -> requests (lua/lib.lua). Hours are Unix time
// divided by 3,600,000 ms.
func keyCounters(p int) string { return tags[p] + "n" }

// keyIndex is a ZSET whose members, all with score 0, say that a call can be found by a term (index.go). It belongs to a span of
// time and to the terms with one hash, not to a call: an index entry that is lost costs a search hit, nothing else.
func keyIndex(span int64, width byte, shard int) string {
	return "cr:i:" + strconv.FormatInt(span, 36) + ":" + string(width) + strconv.FormatInt(int64(shard), 36)
}

// keyRecent is a LIST of the calls that began in a span of time, in the order in which they did.
func keyRecent(span int64) string { return "cr:i:" + strconv.FormatInt(span, 36) + ":r" }

var tags = func() (t [Partitions]string) {
	for p := range t {
		t[p] = "cr:{" + strconv.Itoa(p) + "}:"
	}
	return t
}()

func tag(call string) string { return tags[Partition(call)] }

// Partition says where a call lives.
func Partition(call string) int { return int(crc32.ChecksumIEEE([]byte(call)) % Partitions) }

// Member is an entry of a due list: a call, or a timer of a call.
func Member(call, timer string) string {
	if timer == "" {
		return call
	}
	return call + "\t" + timer
}

func splitMember(m string) (call, timer string) {
	call, timer, _ = strings.Cut(m, "\t")
	return call, timer
}
