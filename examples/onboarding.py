"""A new customer comes aboard: four steps, and in their midst a wait of up to two days for a click in a mail.

Run it with `make example-onboarding`. Kill the process wherever you like (`make demo` does): what was
recorded is not done again, the rest follows.
"""

import asyncio

import msgspec

import zart
from examples import world
from examples.stage import stage, waits_for
from zart import durable, step


class Signup(msgspec.Struct):
    """Who wants to come aboard."""

    user: str
    email: str


class Verified(msgspec.Struct):
    """The click in the welcome mail."""

    ip: str


EmailVerified = zart.Event("email-verified", Verified)


@step("send-welcome-mail")
async def send_welcome_mail(email: str) -> None:
    await world.call("mail", f"welcome to {email}")


@step("create-customer", retry="exponential(3, 2s)")
async def create_customer(email: str) -> str:
    await world.call("billing", f"new customer {email}")
    return "customer-" + email.partition("@")[0]


@step("provision", timeout="30s")
async def provision(customer: str) -> str:
    await world.call("cluster", f"workspace for {customer}")
    return f"https://{customer}.example.com"


@step("activate")
async def activate(customer: str, verified_from: str) -> None:
    await world.call("billing", f"activate {customer}, verified from {verified_from}")


@durable("onboarding", max_retries=3, timeout="50h")
async def onboarding(signup: Signup) -> str:
    await send_welcome_mail(signup.email)
    customer = await create_customer(signup.email)
    url = await provision(customer)
    verified = await zart.wait_for_event(EmailVerified, timeout="48h")
    await activate(customer, verified.ip)
    return url


registry = zart.Registry(onboarding)


async def main() -> None:
    async with stage() as client, zart.Worker(client, registry):
        print("ann signs up; the billing service is about to fail once")
        world.break_once("billing")
        signup = Signup(user="ann", email="ann@example.com")
        handle = await client.start(onboarding, signup, id="onboarding-ann")

        waiting = await waits_for(handle, "email-verified")
        print(f"onboarding-ann is {waiting.status}: it holds a row in Postgres and nothing else")

        print("ann clicks the link in the mail")
        await client.offer_event(handle.id, EmailVerified, Verified(ip="192.0.2.7"))
        print(f"done: {await handle.result(timeout='30s')}")


if __name__ == "__main__":
    asyncio.run(main())
