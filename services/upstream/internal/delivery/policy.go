package delivery

import (
	"fmt"
	"time"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/services/upstream/internal/retry"
)

// Policy is what follows from an answer. It is pure: no clock, no I/O, randomness as an argument.
type Policy struct {
	// Ask: a delivery that may have arrived waits for a person instead of being sent again.
	Ask bool
	// MaxAttempts ends a delivery as dead, AppErrorAttempts one that the destination fails to process.
	MaxAttempts, AppErrorAttempts int
	// MaxAge ends a delivery as expired; time under a hold or an open breaker does not count.
	MaxAge time.Duration
	// Backoff is the wait before the next attempt.
	Backoff retry.Backoff
	// Once names an endpoint whose deliveries are worth one attempt within their own maximum age, and nobody's attention: what fails or
	// is too late is discarded.
	Once string
	// ProbeInterval is how long a destination at fault is left alone before one delivery probes it.
	ProbeInterval time.Duration
}

// verdict is what becomes of one lease.
type verdict struct {
	// next is the word of Attempt.next.
	next string
	// end is the final state, for dead, ask, expired, discarded and send_disabled.
	end statev1.DeliveryState
	// reason says why, in words; empty when delivered.
	reason string
	// in, paused and uncounted are RetryLater's, for retry. For hold, in is the probe interval.
	in, paused time.Duration
	uncounted  bool
	// reply is what the rules get to know of a success.
	reply string
}

// The words of Attempt.next.
const (
	nextDelivered    = "delivered"
	nextRetry        = "retry"
	nextDead         = "dead"
	nextHold         = "hold"
	nextAsk          = "ask"
	nextExpired      = "expired"
	nextDiscarded    = "discarded"
	nextSendDisabled = "send_disabled"
)

func dead(reason string) verdict {
	return verdict{next: nextDead, end: statev1.DeliveryState_DELIVERY_STATE_DEAD, reason: reason}
}

func ask(reason string) verdict {
	return verdict{next: nextAsk, end: statev1.DeliveryState_DELIVERY_STATE_ASKED,
		reason: reason + "; look in the CRM whether it arrived, then discard it or retry it"}
}

func expired(reason string) verdict {
	return verdict{next: nextExpired, end: statev1.DeliveryState_DELIVERY_STATE_EXPIRED, reason: reason}
}

func discarded(reason string) verdict {
	return verdict{next: nextDiscarded, end: statev1.DeliveryState_DELIVERY_STATE_DISCARDED, reason: reason}
}

// once says that a delivery gets one attempt.
func (p Policy) once(work *statev1.LeaseWork) bool {
	return p.Once != "" && work.Delivery.Endpoint == p.Once
}

// before says whether a leased delivery ends without an attempt. paused is time under an open breaker that state does
// not know of.
func (p Policy) before(work *statev1.LeaseWork, paused time.Duration) (verdict, bool) {
	switch general, own := p.worth(work, paused); {
	case own <= 0:
		late := expired
		if p.once(work) {
			late = discarded
		}
		return late(fmt.Sprintf("older than %v when its turn came, which is too late for %s", ms(work.Delivery.MaxAgeMs), work.Delivery.Endpoint)), true
	case general <= 0:
		return expired(fmt.Sprintf("not delivered within %v (DELIVERY_MAX_AGE)", p.MaxAge)), true
	case p.Ask && work.Delivery.Uncertain && !work.Looked: // who looked and retried it wants it sent
		return ask("an earlier attempt may have arrived"), true
	}
	return verdict{}, false
}

// worth is how long the delivery is still worth sending: by MaxAge, which leaves out paused time, and by its own maximum age,
// which does not (a late screen pop is useless whatever the reason) and does not apply while another delivery of the pair
// waits behind this one.
func (p Policy) worth(work *statev1.LeaseWork, paused time.Duration) (general, own time.Duration) {
	general = p.MaxAge - ms(work.AgeMs) + paused
	own = 1<<63 - 1
	if d := work.Delivery; d.MaxAgeMs > 0 && !work.Followed {
		own = ms(d.MaxAgeMs - work.WallAgeMs)
	}
	return general, own
}

// circumstances are what an answer is judged by beside the delivery itself.
type circumstances struct {
	// appErrors counts the AppErrors of this delivery, this one included.
	appErrors int
	// probe: the breaker was half open, and stays shut for breakerOpen when this fails.
	probe       bool
	breakerOpen time.Duration
	// paused is time under an open breaker that state does not know of.
	paused time.Duration
	random func() float64
}

// after says what becomes of a delivery after an attempt.
func (p Policy) after(work *statev1.LeaseWork, answer Answer, c circumstances) verdict {
	number := int(work.Delivery.Attempts) + 1
	if p.once(work) && answer.Outcome != Delivered && answer.Outcome != Hold {
		return discarded(answer.Reason)
	}
	switch answer.Outcome {
	case Delivered:
		return verdict{next: nextDelivered, reply: string(answer.Reply)}
	case Dead:
		return dead(answer.Reason)
	case Hold:
		return verdict{next: nextHold, reason: answer.Reason, in: max(p.ProbeInterval, answer.RetryAfter)}
	case AppError:
		if c.appErrors >= p.AppErrorAttempts {
			return dead(fmt.Sprintf("given up after %d application errors; the last: %s", c.appErrors, answer.Reason))
		}
	case Uncertain:
		if p.Ask {
			return ask(answer.Reason)
		}
	case Unsent, Transport:
		// What meets an open breaker's end only probes the destination. It says nothing about the delivery and must not
		// use up its attempts: an outage of any length burns none.
		if c.probe {
			in := max(p.Backoff.Delay(number, c.random), answer.RetryAfter, c.breakerOpen)
			return verdict{next: nextRetry, reason: answer.Reason, in: in, paused: in, uncounted: true}
		}
	}
	if number >= p.MaxAttempts {
		return dead(fmt.Sprintf("given up after %d attempts; the last: %s", number, answer.Reason))
	}
	general, own := p.worth(work, c.paused)
	in := max(p.Backoff.Delay(number, c.random), answer.RetryAfter)
	return verdict{next: nextRetry, reason: answer.Reason, in: max(min(in, general, own), 0)}
}

func ms(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
