xpk workload create --cluster=adx --project=my-project --zone=us-west4-a --workload=poe-0 --tpu-type=v5litepod-8 --docker-image=us-docker.pkg.dev/my-project/adx/run:1 '--command=exec python -m launch.run '"'"'--set=a="$$(touch pwned)"; `touch pwned` '"'"'"'"'"'"'"'"'x'"'"'"'"'"'"'"'"' $$HOME $${HOME} $$$$ $$(HF_TOKEN) \ & | > *'"'"' --shard=0 --num_shards=2' --max-restarts=10 --restart-on-exit-codes=74,75 '--env=NOTE=$$(HF_TOKEN)'
xpk workload create --cluster=adx --project=my-project --zone=us-west4-a --workload=poe-1 --tpu-type=v5litepod-8 --docker-image=us-docker.pkg.dev/my-project/adx/run:1 '--command=exec python -m launch.run '"'"'--set=a="$$(touch pwned)"; `touch pwned` '"'"'"'"'"'"'"'"'x'"'"'"'"'"'"'"'"' $$HOME $${HOME} $$$$ $$(HF_TOKEN) \ & | > *'"'"' --shard=1 --num_shards=2' --max-restarts=10 --restart-on-exit-codes=74,75 '--env=NOTE=$$(HF_TOKEN)'
xpk workload list --cluster=adx --project=my-project --zone=us-west4-a
xpk workload list --cluster=adx --project=my-project --zone=us-west4-a
kubectl logs '--selector=jobset.sigs.k8s.io/jobset-name in (poe-0,poe-1)' --all-containers --prefix --tail=200
xpk workload delete --cluster=adx --project=my-project --zone=us-west4-a --workload=poe-0 --force
xpk workload delete --cluster=adx --project=my-project --zone=us-west4-a --workload=poe-1 --force
