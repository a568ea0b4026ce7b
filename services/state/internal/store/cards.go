package store

import (
	"context"
	_ "embed"
	"slices"

	"github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"

	statev1 "callrelay/gen/callrelay/state/v1"
)

//go:embed lua/cards.lua
var cardsLua string

var cardsScript = newScript("", cardsLua)

// CallCards are the cards that a commit changes, as watchers see them.
func CallCards(item *statev1.CommitItem, nowMS int64) []*statev1.CallCard {
	out := make([]*statev1.CallCard, len(item.GetCards()))
	for i, card := range item.GetCards() {
		out[i] = &statev1.CallCard{Call: item.GetCall(), Card: card, AtMs: nowMS}
		if card.GetOpenMs() > 0 {
			out[i].UntilMs = nowMS + card.GetOpenMs()
		}
	}
	return out
}

// Cards are all that are open. Whoever opened one ends it by a commit; one whose time is over all the same (its integration
// is gone, say) is forgotten.
func (s *Store) Cards(ctx context.Context) ([]*statev1.CallCard, error) {
	p := s.client.Pipeline()
	cmds := make([]*redis.MapStringStringCmd, Partitions)
	for i := range cmds {
		cmds[i] = p.HGetAll(ctx, keyCards(i))
	}
	if _, err := p.Exec(ctx); err != nil {
		return nil, err
	}
	var out []*statev1.CallCard
	var over []invocation
	now := s.clock.Now()
	for i, cmd := range cmds {
		for field, body := range cmd.Val() {
			c := &statev1.CallCard{}
			if err := proto.Unmarshal([]byte(body), c); err != nil || c.GetUntilMs() <= now {
				over = append(over, invoke(cardsScript, []string{keyCards(i)}, field, body))
				continue
			}
			out = append(out, c)
		}
	}
	for batch := range slices.Chunk(over, forgotten) {
		if _, errs := s.run(ctx, batch); errs[0] != nil {
			break // the next time
		}
	}
	return out, nil
}

// forgotten bounds one pipeline of what is over.
const forgotten = 256
