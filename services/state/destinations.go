package state

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	operatorv1 "callrelay/gen/callrelay/operator/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/platform/errkind"
	"callrelay/platform/telemetry"
	"callrelay/services/state/internal/store"
)

// stands keeps how a consumer says it is. What is lost is said again within seconds.
func (s *Service) stands(ctx context.Context, destination string, st *statev1.Standing) {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	st.Process, st.Failure = cut(st.GetProcess(), 200), telemetry.MaskDigits(cut(st.GetFailure(), 500))
	_ = s.store.SetStanding(ctx, destination, st)
}

func cut(text string, most int) string {
	return strings.ToValidUTF8(text[:min(len(text), most)], "\uFFFD")
}

// ListDestinations shows each destination.
func (o *operator) ListDestinations(ctx context.Context, _ *operatorv1.ListDestinationsRequest) (*operatorv1.ListDestinationsResponse, error) {
	holds, err := o.store.Holds(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	standings, err := o.store.Standings(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	maintenances, err := o.store.Maintenances(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	accounts, err := o.store.Accounts(ctx, "kommo/")
	if err != nil {
		return nil, unavailable(err)
	}
	hosts := map[string]string{}
	for _, a := range accounts {
		hosts[a.GetId()] = a.GetHost()
	}
	_, masked := caller(ctx)
	resp := &operatorv1.ListDestinationsResponse{}
	for _, name := range slices.Sorted(maps.Keys(holds)) {
		h := holds[name]
		waiting, leased, letters, oldest, err := o.store.Backlog(ctx, name)
		if err != nil {
			return nil, unavailable(err)
		}
		limit := name
		if host := hosts[name]; host != "" {
			kind, _, _ := strings.Cut(name, "/")
			limit = kind + "/" + host // an account's limit goes by its host
		}
		wait, err := o.store.Paused(ctx, limit)
		if err != nil {
			return nil, unavailable(err)
		}
		d := &operatorv1.Destination{Name: name, Waiting: waiting, Sending: leased, Dead: letters,
			Held: h.Held(), HoldReason: h.Reason, HoldSinceMs: h.SinceMS, ProbeMs: h.ProbeMS,
			Consumers: standings[name], LimitWaitMs: wait.Milliseconds(), Maintenance: maintenances[name]}
		slices.SortFunc(d.GetConsumers(), func(a, b *statev1.Standing) int { return strings.Compare(a.GetProcess(), b.GetProcess()) })
		if oldest != 0 {
			d.OldestAgeMs = max(0, o.store.Now()-oldest)
		}
		d.Health = health(d, o.store.Now())
		if masked {
			d.HoldReason = telemetry.MaskDigits(d.GetHoldReason())
			if m := d.GetMaintenance(); m != nil {
				m.Reason = telemetry.MaskDigits(m.GetReason())
			}
		}
		resp.Destinations = append(resp.Destinations, d)
	}
	return resp, nil
}

// maintained says whether a destination is held for its maintenance.
func maintained(h store.Hold, m *operatorv1.Maintenance) bool {
	return m != nil && h.Held() && h.Reason == m.GetReason()
}

// longWait is from when on a wait is worth a word.
const longWait = time.Second

// health says why nothing leaves, the strongest reason first, or that something does.
func health(d *operatorv1.Destination, nowMS int64) string {
	var breaker *statev1.Standing // an open or half-open one
	broken, busy, workers, failure := 0, 0, int32(0), ""
	for _, c := range d.GetConsumers() {
		if c.GetBreaker() != "closed" {
			broken++
			if breaker == nil || c.GetBreakerMs() < breaker.GetBreakerMs() {
				breaker = c
			}
		}
		workers += c.GetWorkers()
		if c.GetRunning() >= c.GetWorkers() {
			busy++
		}
		if c.GetFailure() != "" {
			failure = c.GetFailure()
		}
	}
	because := func(text string) string {
		if failure == "" {
			return text
		}
		return text + ": " + failure
	}
	all := len(d.GetConsumers())
	m := d.GetMaintenance()
	switch {
	case d.GetHeld() && m != nil && d.GetHoldReason() == m.GetReason():
		return fmt.Sprintf("maintenance, nothing is sent for %s", seconds(m.GetUntilMs()-nowMS))
	case d.GetHeld() && d.GetProbeMs() > 0:
		return fmt.Sprintf("held because of its own fault, one delivery tries every %s", seconds(d.GetProbeMs()))
	case d.GetHeld():
		return "held by a person, nothing is sent"
	case d.GetName() != store.Rules && all == 0:
		return "nobody works it off: no upstream process is connected that knows it"
	case broken > 0 && broken == all && breaker.GetBreaker() == "half-open":
		return because("the circuit breaker lets a few through to see whether it answers")
	case broken > 0 && broken == all:
		return because(fmt.Sprintf("the circuit breaker is open, it is tried again in %s", seconds(breaker.GetBreakerMs())))
	case d.GetLimitWaitMs() >= longWait.Milliseconds():
		return because(fmt.Sprintf("it had too many requests and asked to be left alone for another %s", seconds(d.GetLimitWaitMs())))
	case broken > 0:
		return because(fmt.Sprintf("the circuit breakers of %d of %d processes are not closed", broken, all))
	case d.GetWaiting() > 0 && all > 0 && workers == 0:
		return because("no process has a share of what may be sent at once yet (that of one that is gone comes back after LEASE_TIME)")
	case d.GetWaiting() > 0 && all > 0 && busy == all:
		return because("all workers are busy, waiting for answers")
	case failure != "" && d.GetWaiting()+d.GetSending() > 0:
		return because("the last attempt failed")
	}
	return "ok"
}

func seconds(ms int64) time.Duration {
	return (time.Duration(ms) * time.Millisecond).Round(time.Second)
}

// HoldDestination stops a destination until a person releases it, or for a maintenance. The same hold again changes nothing.
func (o *operator) HoldDestination(ctx context.Context, req *operatorv1.HoldDestinationRequest) (*operatorv1.Destination, error) {
	name, now := req.GetDestination(), o.store.Now()
	if req.GetReason() == "" {
		return nil, errReason
	}
	from, err := moment("from", req.GetFrom(), now, o.zone)
	if err != nil {
		return nil, err
	}
	until, err := moment("until", req.GetUntil(), now, o.zone)
	switch {
	case err != nil:
		return nil, err
	case until == 0 && from != 0:
		return nil, errkind.Invalid("until", "until is required with from: a hold that begins by itself has to end by itself")
	case until != 0 && until <= max(from, now):
		return nil, errkind.Invalid("until", "until must be after from, and after now")
	case until != 0 && until-now > maxPlanned.Milliseconds():
		return nil, errkind.Invalid("until", "until must be within %s", maxPlanned)
	case from == 0:
		from = now
	}
	return o.change(ctx, name, req.GetReason(), "hold", func(h store.Hold) (bool, error) {
		actor, _ := caller(ctx)
		if until != 0 { // a hold without an end leaves what is planned
			err := o.store.PlanMaintenance(ctx, name, &operatorv1.Maintenance{FromMs: from, UntilMs: until, Reason: req.GetReason(), Actor: actor})
			if err != nil {
				return false, err
			}
		}
		if from > now {
			return false, nil
		}
		if h.Held() && h.ProbeMS == 0 && h.Reason == req.GetReason() {
			return false, nil
		}
		return true, o.store.Hold(ctx, name, req.GetReason(), store.AnyEpoch, 0)
	})
}

// maxPlanned bounds how far ahead a maintenance may end.
const maxPlanned = 31 * 24 * time.Hour

// ReleaseDestination ends a hold and forgets a maintenance.
func (o *operator) ReleaseDestination(ctx context.Context, req *operatorv1.ReleaseDestinationRequest) (*operatorv1.Destination, error) {
	return o.change(ctx, req.GetDestination(), req.GetReason(), "release", func(h store.Hold) (bool, error) {
		if err := o.store.PlanMaintenance(ctx, req.GetDestination(), nil); err != nil {
			return false, err
		}
		return h.Held(), o.store.Release(ctx, req.GetDestination(), store.AnyEpoch)
	})
}

// change holds or releases a destination, and journals who did.
func (o *operator) change(ctx context.Context, name, reason, what string, do func(store.Hold) (bool, error)) (*operatorv1.Destination, error) {
	if name == "" {
		return nil, errkind.Invalid("destination", "destination is required, e.g. topsii")
	}
	if len(reason) > maxReason {
		return nil, errkind.Invalid("reason", "reason is longer than %d bytes", maxReason)
	}
	if err := o.known(name); err != nil {
		return nil, err
	}
	holds, err := o.store.Holds(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	changed, err := do(holds[name])
	if err != nil {
		return nil, unavailable(err)
	}
	if changed {
		actor, _ := caller(ctx)
		if err := o.noted(ctx, name, actor, what, reason); err != nil {
			return nil, unavailable(err)
		}
	}
	o.dispatch.Refresh(ctx)
	list, err := o.ListDestinations(ctx, nil)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(list.GetDestinations(), func(d *operatorv1.Destination) bool { return d.GetName() == name })
	return list.GetDestinations()[i], nil
}

// noted journals that a destination was held or released.
func (s *Service) noted(ctx context.Context, destination, actor, what, reason string) error {
	s.tel.Log().InfoContext(ctx, what, "destination", destination, "reason", telemetry.MaskDigits(reason), "actor", actor)
	item := &statev1.CommitItem{Call: "destination/" + destination, Journal: store.MarshalJournal(&statev1.JournalEntry{AtMs: s.store.Now(),
		Fact: &statev1.JournalEntry_Action{Action: &statev1.Action{Actor: actor, What: what, Reason: reason}}})}
	if err := s.store.Note(ctx, item.GetCall(), rand.Text(), item.GetJournal()); err != nil {
		return err
	}
	s.committed(item)
	return nil
}

// known refuses a destination that nothing was ever queued for and nobody works off: it is a slip of the keyboard. Empty is all.
func (o *operator) known(destination string) error {
	names := o.store.Destinations()
	if destination == "" || slices.Contains(names, destination) {
		return nil
	}
	slices.Sort(names)
	return errkind.NotFound("there is no destination %q; there are: %s", destination, strings.Join(names, ", "))
}

// maintain begins and ends what is planned. Any state process may: holding and releasing twice changes nothing. Each step can
// be taken up by another process that finds it half done.
func (w *watchman) maintain(ctx context.Context) error {
	planned, err := w.store.Maintenances(ctx)
	if err != nil || len(planned) == 0 {
		return err
	}
	holds, err := w.store.Holds(ctx)
	if err != nil {
		return err
	}
	for name, m := range planned {
		// A person's hold for another reason is that person's to end.
		held, theirs := holds[name].Held() && holds[name].Reason == m.GetReason(), holds[name].Held() && holds[name].ProbeMS == 0
		what := ""
		switch now := w.store.Now(); {
		case now >= m.GetUntilMs():
			if held {
				what, err = "release", w.store.Release(ctx, name, holds[name].Epoch)
			}
			if err == nil {
				err = w.store.PlanMaintenance(ctx, name, nil)
			}
		case now >= m.GetFromMs() && !held && !theirs:
			what, err = "hold", w.store.Hold(ctx, name, m.GetReason(), store.AnyEpoch, 0)
			// A person may have cancelled it since it was read: then nobody would release what was held now.
			if again, failed := w.store.Maintenances(ctx); err == nil && (failed != nil || !proto.Equal(again[name], m)) {
				what, err = "", errors.Join(failed, w.store.Release(ctx, name, holds[name].Epoch))
			}
		}
		if err != nil {
			return err
		}
		if what == "" {
			continue
		}
		if err := w.noted(ctx, name, m.GetActor(), what, m.GetReason()); err != nil {
			return err
		}
		w.dispatch.Refresh(ctx)
	}
	return nil
}

// moment reads a point in time to come, in milliseconds: a duration from now, a time of day (the next one), or a time. Empty is 0.
func moment(field, text string, nowMS int64, zone *time.Location) (int64, error) {
	if text == "" {
		return 0, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return nowMS + d.Milliseconds(), nil
	}
	now := time.UnixMilli(nowMS).In(zone)
	if t, err := time.ParseInLocation("15:04", text, zone); err == nil {
		at := time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), 0, 0, zone)
		if !at.After(now) {
			at = time.Date(now.Year(), now.Month(), now.Day()+1, t.Hour(), t.Minute(), 0, 0, zone)
		}
		return at.UnixMilli(), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateTime, "2006-01-02 15:04", "2006-01-02T15:04"} {
		if t, err := time.ParseInLocation(layout, text, zone); err == nil {
			return t.UnixMilli(), nil
		}
	}
	return 0, errkind.Invalid(field, "%s must be a duration from now like 90m, a time of day like 06:00, or a time like 2026-03-06T06:00:00+09:00", field)
}
