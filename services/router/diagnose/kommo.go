package diagnose

import (
	"google.golang.org/protobuf/proto"

	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/services/router/kommo"
)

// kommo says why a call is not on its way into Kommo yet: the manager may still choose its entity.
func (d *diagnosis) kommo() {
	stored := &statev1.KommoRecord{}
	if err := proto.Unmarshal(d.call.Record.GetBlobs()["kommo"], stored); err != nil {
		return // one of a newer router
	}
	c := stored.GetCall()
	if c == nil || kommo.Phase(c.GetPhase()) != kommo.Collecting {
		return
	}
	switch w := c.GetWindow(); {
	case w == nil && c.GetVoip() != nil:
		d.find(UpstreamSend, waiting, "kommo_claim", about{})
	case kommo.WindowState(w.GetState()) == kommo.WindowOpened && c.GetVoip() != nil:
		d.find(UpstreamSend, waiting, "kommo_window", about{})
	case w != nil && c.GetVoip() == nil:
		d.find(UpstreamSend, waiting, "kommo_unreported", about{})
	}
}
