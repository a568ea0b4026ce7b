package router

import (
	"strconv"

	"callrelay/callback"
	statev1 "callrelay/gen/callrelay/state/v1"
	"callrelay/services/router/kommo"
	"callrelay/services/router/pbx"
)

// ringMessages are those by which a phone that begins to ring shows a card in Kommo (K11): to the Kommo user of the extension, in each
// account that is connected now. A leg begins to ring once, so its id makes that of its message unique.
func (r *kommoRules) ringMessages(callKey string, config *pbx.Config, effects pbx.Effects, traceparent string, receivedMS int64) ([]*statev1.Message, error) {
	accounts := r.routes[callback.Pbx+"/"+config.Integration]
	var messages []kommo.Message
	for _, c := range effects.Cards {
		user := kommoUser(c.User)
		if !c.Rings() || user == 0 || kommo.Digits(c.Number) == "" || config.Local(c.Number) {
			continue
		}
		for _, account := range accounts {
			if rules, err := r.of(account); err != nil || rules.PopupMaxAge == 0 {
				continue // unlike a call, a card waits for no account
			}
			leg := kommoID(c.ID)
			messages = append(messages, kommo.Message{
				ID: "ring>" + callKey + ">" + leg + ">" + strconv.FormatInt(account, 10), To: kommo.RingKey(account, leg),
				Input: kommo.Input{RequestID: effects.RequestID, Traceparent: traceparent, ReceivedMS: receivedMS,
					Ringing: &kommo.Ringing{Phone: c.Number, Users: []int64{user}}},
			})
		}
	}
	return kommoMessages(messages)
}

// kommoUser reads the CRM user of an extension as one of Kommo; 0: it is none.
func kommoUser(user string) int64 {
	id, err := strconv.ParseInt(user, 10, 64)
	if err != nil || id < 0 {
		return 0
	}
	return id
}
