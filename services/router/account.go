package router

import (
	"slices"
	"strings"

	routerv1 "callrelay/gen/callrelay/router/v1"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/services/router/ameyo"
)

// moves says in which bucket of the accounting the facts of an input put requests: its own, and those whose phone-1 record it
// ends. What has deliveries is counted by their states, which state knows.
func moves(entries []*statev1.JournalEntry) []*statev1.Move {
	var list []*statev1.Move
	for _, e := range entries {
		id, to := e.GetRequestId(), statev1.Bucket_BUCKET_UNSPECIFIED
		switch fact := e.GetFact().(type) {
		case *statev1.JournalEntry_Received:
			to = statev1.Bucket_BUCKET_NOTHING_TO_SEND // unless what follows says otherwise
		case *statev1.JournalEntry_Rejected:
			to = statev1.Bucket_BUCKET_REFUSED
		case *statev1.JournalEntry_Duplicate:
			to = statev1.Bucket_BUCKET_DUPLICATE
		case *statev1.JournalEntry_Undecided:
			if !slices.ContainsFunc(list, func(m *statev1.Move) bool { return m.GetRequestId() == id }) {
				continue // an entry of `rules`, which is no request
			}
			to = statev1.Bucket_BUCKET_UNDECIDED
		case *statev1.JournalEntry_Decided:
			if fact.Decided.GetFlow() == ameyo.FlowWait {
				to = statev1.Bucket_BUCKET_WAITING_PHONE2
			}
		case *statev1.JournalEntry_Phone1:
			id = fact.Phone1.GetRequestId()
			switch fact.Phone1.GetWhat() {
			case ameyo.Phone1Taken:
				to = statev1.Bucket_BUCKET_COMBINED
			case ameyo.Phone1Expired:
				to = statev1.Bucket_BUCKET_PHONE1_EXPIRED
			case ameyo.Phone1Replaced:
				to = statev1.Bucket_BUCKET_NOTHING_TO_SEND
			}
		}
		if to == statev1.Bucket_BUCKET_UNSPECIFIED || id == "" {
			continue
		}
		if i := slices.IndexFunc(list, func(m *statev1.Move) bool { return m.GetRequestId() == id }); i >= 0 {
			list[i].To = to
		} else {
			list = append(list, &statev1.Move{RequestId: id, To: to})
		}
	}
	return list
}

// terms are what a callback makes its call findable by: ids and names, and phone numbers.
func terms(item *routerv1.RouteItem) (terms, phones []string) {
	room := make([]string, 4) // two of each is what most have
	terms, phones = room[0:0:2], room[2:2:4]
	switch c := item.GetCallback().(type) {
	case *routerv1.RouteItem_AmeyoCallStart:
		m := c.AmeyoCallStart
		terms = addTerms(terms, m.GetUserId())
		phones = addTerms(phones, m.GetPhone(), m.GetDisplayPhone(), m.GetDialledPhone(), m.GetDstPhone())
	case *routerv1.RouteItem_AmeyoCallEnd:
		m := c.AmeyoCallEnd
		terms = addTerms(terms, m.GetCustomerId(), m.GetUserId())
		phones = addTerms(phones, m.GetDialledPhone(), m.GetDialedPhone(), m.GetCstmPhone(), m.GetPhone1(), m.GetPhone2(), m.GetDstPhone())
		if list := m.GetPhoneList(); len(list) <= maxTerm {
			list = strings.TrimPrefix(list, `{"phoneList":`)
			for phone := range strings.FieldsFuncSeq(list, func(r rune) bool { return strings.ContainsRune(`[]{}",`, r) }) {
				phones = addTerms(phones, phone)
			}
		}
	case *routerv1.RouteItem_PbxEvent:
		m := c.PbxEvent
		terms = addTerms(terms, m.GetExtension(), m.GetEvent().GetAgentId())
		phones = addTerms(phones, m.GetEvent().GetCallerIdNum(), m.GetEvent().GetCalledNumber(), m.GetEvent().GetRemoteNumber())
	case *routerv1.RouteItem_KommoCall:
		m := c.KommoCall
		terms = addTerms(terms, m.GetCallId(), m.GetUser())
		phones = addTerms(phones, m.GetPhone(), m.GetDid())
	case *routerv1.RouteItem_KommoWindow:
		terms, phones = addTerms(terms, c.KommoWindow.GetCallId()), addTerms(phones, c.KommoWindow.GetPhone())
	}
	return terms, phones
}

func addTerms(list []string, values ...string) []string {
	for _, v := range values {
		if v = strings.TrimSpace(v); v != "" && len(v) <= maxTerm && len(list) < mostTerms && !slices.Contains(list, v) {
			list = append(list, v)
		}
	}
	return list
}

// Bounds of what one callback adds to the search index.
const (
	maxTerm   = 200
	mostTerms = 8
)
